"""The local cluster: nodes, relays, Redis, RabbitMQ and nginx as plain processes of this machine, without Docker.

`make cluster` runs it, and the tests build clusters with it and kill parts of them.
"""

from deploy.cluster.cluster import Cluster
from deploy.cluster.gateway import Gateway
from deploy.cluster.nginx import Nginx
from deploy.cluster.ports import free_ports
from deploy.cluster.processes import Process, ProcessError
from deploy.cluster.rabbitmq import RabbitMQ
from deploy.cluster.redis import Redis

__all__ = ["Cluster", "Gateway", "Nginx", "Process", "ProcessError", "RabbitMQ", "Redis", "free_ports"]
