"""The library that speaks to the Docker Engine, apart because loading it takes a tenth of a second.

Only machines on which an engine answers import this.
"""

from __future__ import annotations

import docker.auth
import docker.errors
import docker.types
import requests
import urllib3
from docker import APIClient

__all__ = ["BROKEN", "APIClient", "APIError", "CancellableStream", "DockerException", "encode_header"]

APIError = docker.errors.APIError
DockerException = docker.errors.DockerException
CancellableStream = docker.types.CancellableStream
encode_header = docker.auth.encode_header
#: What may go wrong between us and the engine.
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
