"""Publishes to a durable queue with confirmation, on one connection, and gets each message, in order, on another."""
import sys
import time

import pika

host, seconds = sys.argv[1], int(sys.argv[2])
params = pika.ConnectionParameters(host, credentials=pika.PlainCredentials("bench", "bench"), heartbeat=60)
sender, receiver = pika.BlockingConnection(params), pika.BlockingConnection(params)
out, back = sender.channel(), receiver.channel()
out.queue_declare("bench", durable=True)
out.queue_purge("bench")
out.confirm_delivery()
end = time.monotonic() + seconds
n = 0
while time.monotonic() < end:
    out.basic_publish("", "bench", b"%d" % n, pika.BasicProperties(delivery_mode=2), mandatory=True)
    body = None
    while body is None:
        method, _, body = back.basic_get("bench")
    if int(body) != n:
        sys.exit(f"sent {n}, got {body}")
    back.basic_ack(method.delivery_tag)
    n += 1
sender.close()
receiver.close()
print(n)
