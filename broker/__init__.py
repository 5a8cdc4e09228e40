"""RabbitMQ and Redis behind contracts; knows nothing of WebSockets."""
