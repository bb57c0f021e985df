"""Answers each line with the same line and the number of seconds that a timer has counted, over TLS."""
import asyncio
import ssl

ticks = 0


async def tick():
    global ticks
    while True:
        await asyncio.sleep(1)
        ticks += 1


async def answer(reader, writer):
    while line := await reader.readline():
        writer.write(b"%d %s" % (ticks, line))
        await writer.drain()
    writer.close()


async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("/srv/cert.pem", "/srv/key.pem")
    counting = asyncio.create_task(tick())
    server = await asyncio.start_server(answer, "0.0.0.0", 8443, ssl=tls)
    async with server:
        await asyncio.gather(server.serve_forever(), counting)


asyncio.run(main())
