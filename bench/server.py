"""The unit of the loss benchmark: a small HTTP server that is up at once (standard library)."""

import os
import socket

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def main() -> None:
    with socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=64) as door:
        while True:
            connection, _ = door.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(ANSWER)


if __name__ == "__main__":
    main()
