"""Certificates for tests, made by the openssl of this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

KEY_OPTIONS = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Files(NamedTuple):
    """The values of the settings with these names."""

    tls_cert: str
    tls_key: str
    tls_ca: str


class Authority:
    """One that signs whatever it is asked to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.certificate, self.key = directory / "ca.crt", directory / "ca.key"
        openssl(
            *("req", "-x509", *KEY_OPTIONS, "-subj", "/CN=an authority", "-days", "30"),
            *("-keyout", str(self.key), "-out", str(self.certificate)),
        )

    def issue(self, name: str, *, days: int = 30) -> Files:
        certificate, key, request = (self.directory / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        openssl(
            "req", "-new", *KEY_OPTIONS, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)
        )
        openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key)),
            *("-CAcreateserial", "-days", str(days), "-out", str(certificate)),
        )
        return Files(str(certificate), str(key), str(self.certificate))


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
