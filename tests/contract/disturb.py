"""What tests do to the private RabbitMQ and to connections to it."""

import asyncio
from pathlib import Path

from aio_pika.abc import AbstractConnection

from deploy.cluster import RabbitMQ

# Not the one in the path: Debian's becomes another user.
(_SCRIPT,) = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmqctl"))[-1:] or [Path()]


async def rabbitmqctl(server: RabbitMQ, *arguments: str) -> None:
    """Run rabbitmqctl on the private server."""
    process = await asyncio.create_subprocess_exec(
        _SCRIPT, "-q", "-n", server.env["RABBITMQ_NODENAME"], *arguments, env=server.env, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output


async def remember_queues(server: RabbitMQ) -> None:
    """Write to disk which quorum queues there are, before the server is killed.

    RabbitMQ 3.10 does so half a second after the last one was declared (ra_directory.erl: auto_save). Killed before, it
    starts with a queue that is empty and has no leader, whatever it had confirmed.
    """
    await rabbitmqctl(server, "eval", "[dets:sync(Table) || Table <- dets:all()].")


async def close_connection(connection: AbstractConnection | None) -> None:
    """Close a connection under its user, if there is one now."""
    if connection is not None:
        await connection.close()
