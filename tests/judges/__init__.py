"""Suites that other people wrote for etcd, run as they are against the ``etcd`` of Argosy."""
