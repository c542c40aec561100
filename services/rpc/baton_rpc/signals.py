"""SIGTERM and SIGINT as an event to wait for."""

import asyncio
import signal


def stop_signal() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets. Call it on the running loop.

    The first signal asks for an orderly end and gives both signals their
    default effect back, so that a second one ends the process at once.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    handled = (signal.SIGTERM, signal.SIGINT)

    def ask() -> None:
        asked.set()
        for number in handled:
            loop.remove_signal_handler(number)

    for number in handled:
        loop.add_signal_handler(number, ask)
    return asked
