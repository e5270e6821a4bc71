"""HTTPS: OpenAI's client over TLS, a certificate that is replaced, and clients that break off."""

import os
import socket
import ssl
import subprocess
import urllib.request

import trustme
from conftest import BITNET, Server, wait_until
from openai import DefaultHttpxClient, OpenAI


class TlsServer(Server):
    """A server whose probes are asked with the authority's certificate."""

    def __init__(self, context, *arguments):
        command = [BITNET, "serve", "--port", "0", "--log-format", "json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        line = self.process.stdout.readline()
        assert line.startswith("listening on https://"), line
        self.url = line.removeprefix("listening on ").strip()
        wait_until("ready", lambda: self.is_ready(context))

    def is_ready(self, context):
        try:
            with urllib.request.urlopen(self.url + "/readyz", context=context) as response:
                return response.status == 200
        except OSError:
            return False


def write(authority, folder):
    """A new certificate for this machine; returns its number."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    return serial(made.cert_chain_pems[0].bytes())


def serial(pem):
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(pem).serial_number


def served(url, context):
    """The number of the certificate that a new connection gets."""
    from cryptography.x509 import load_der_x509_certificate

    host, port = url.removeprefix("https://").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        return load_der_x509_certificate(tls.getpeercert(binary_form=True)).serial_number


def test_a_client_speaks_https_and_a_new_certificate_is_used(tmp_path):
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    first = write(authority, tmp_path)
    files = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with TlsServer(context, *files) as server:
        client = OpenAI(
            base_url=server.url + "/v1", api_key="none", max_retries=0, http_client=DefaultHttpxClient(verify=context)
        )
        ask = {"model": "stories", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 5}
        assert client.chat.completions.create(**ask).choices[0].message.content
        assert [chunk for chunk in client.chat.completions.create(**ask, stream=True)]
        assert served(server.url, context) == first
        second = write(authority, tmp_path)
        wait_until("replaced", lambda: served(server.url, context) == second)
        # The open connection of the client goes on.
        assert client.chat.completions.create(**ask).choices[0].message.content
        # Clients that send nothing, or no TLS, or break off, delay no other client.
        host, port = server.url.removeprefix("https://").rsplit(":", 1)
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            plain.settimeout(60)
            assert not plain.recv(100).startswith(b"HTTP")
        assert client.chat.completions.create(**ask).choices[0].message.content
        for connection in silent:
            connection.close()
