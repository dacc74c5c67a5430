"""A client in another language: the Python client (which is the C++ one) produces on a topic and consumes it.

Usage: guest.py URL TOPIC PRODUCER SUBSCRIPTION PAUSE_MS. Prints what it sees, a line each:
  subscribing                                       before each new consumer
  subscribed                                        with the first one
  published NUMBER LEDGER ENTRY BATCH
  received PRODUCER NUMBER KEY LEDGER ENTRY BATCH
  acknowledged LEDGER ENTRY BATCH                   when that has its receipt, if they have any
A line on stdin ends the producing; `flushed` is printed once all has its receipt. Another one ends the rest."""
import os
import random
import sys
import threading
import time

import pulsar

# The client writes its log to the standard output: it goes to stderr instead.
output = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
url, topic, name, subscription, pause_ms = *sys.argv[1:5], float(sys.argv[5])
client = pulsar.Client(url, operation_timeout_seconds=10, connection_timeout_ms=3000,
                       logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
printing, producing, consuming = threading.Lock(), threading.Event(), threading.Event()


def say(*words):
    with printing:
        print(*words, file=output, flush=True)


def until_it_works(action):
    while True:
        try:
            return action()
        except pulsar.PulsarException:
            time.sleep(0.3)


def produce():
    producer = until_it_works(lambda: client.create_producer(
        topic, producer_name=name, send_timeout_millis=0, block_if_queue_full=True, max_pending_messages=300, batching_enabled=True,
        batching_type=pulsar.BatchingType.KeyBased, batching_max_publish_delay_ms=3))
    number = 0
    while not producing.is_set():
        for _ in range(random.randrange(1, 20)):
            key = f"k{number * 7919 % 1009 % 16}"
            producer.send_async(f"{name}|{key}|{number}|{'x' * random.randrange(20, 300)}".encode(), receipt(number), partition_key=key)
            number += 1
        time.sleep(random.random() * pause_ms / 1000)
    until_it_works(producer.flush)
    say("flushed")


def receipt(number):
    def done(result, message_id):
        if result == pulsar.Result.Ok:
            say("published", number, message_id.ledger_id(), message_id.entry_id(), message_id.batch_index())
    return done


def consume():
    say("subscribing")
    consumer = until_it_works(lambda: client.subscribe(topic, subscription, pulsar.ConsumerType.Failover,
                                                       initial_position=pulsar.InitialPosition.Earliest))
    say("subscribed")
    while not consuming.is_set():
        try:
            message = consumer.receive(timeout_millis=200)
        except pulsar.PulsarException:
            continue
        producer, key, number, _ = message.data().decode().split("|", 3)
        at = message.message_id()
        say("received", producer, number, key, at.ledger_id(), at.entry_id(), at.batch_index())
        try:
            consumer.acknowledge(message)
        except pulsar.PulsarException:
            pass    # it comes again


threads = [threading.Thread(target=produce, daemon=True), threading.Thread(target=consume, daemon=True)]
for thread in threads:
    thread.start()
sys.stdin.readline()
producing.set()
sys.stdin.readline()
consuming.set()
for thread in threads:
    thread.join(10)
output.flush()
