"""Asks on twenty connections of TLS, each of which must last and get every answer in order, while the timer goes on."""
import asyncio
import ssl
import sys
import time

host, seconds = sys.argv[1], int(sys.argv[2])


async def ask(end):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, 8443, ssl=tls)
    n = ticks = 0
    while time.monotonic() < end:
        writer.write(b"%d\n" % n)
        got = (await reader.readline()).split()
        if len(got) != 2 or int(got[1]) != n or int(got[0]) < ticks:
            sys.exit(f"asked {n} at tick {ticks}, got {got}")
        ticks, n = int(got[0]), n + 1
        await asyncio.sleep(0.01)
    writer.close()
    return n


async def main():
    end = time.monotonic() + seconds
    print(sum(await asyncio.gather(*(ask(end) for _ in range(20)))))


asyncio.run(main())
