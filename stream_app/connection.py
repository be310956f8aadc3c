"""How to reach the broker securely, for aiokafka; Faust is told the same in `faust_options.py`."""

from __future__ import annotations

import ssl
from typing import Any

from stream_app.settings import Settings


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """What verifies the broker; None without TLS."""
    return ssl.create_default_context(cafile=settings.tls_ca_file) if settings.tls else None


def security(settings: Settings) -> dict[str, Any]:
    """Aiokafka's keyword arguments for TLS and log-in; none for a plain broker."""
    context = ssl_context(settings)
    if settings.sasl_mechanism is None:
        return {"security_protocol": "SSL", "ssl_context": context} if context else {}
    return {
        "security_protocol": "SASL_SSL" if context else "SASL_PLAINTEXT",
        "ssl_context": context,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
    }
