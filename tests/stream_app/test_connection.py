"""TLS and log-in, for aiokafka and for Faust: the same from the same settings."""

import ssl
from typing import Any

import faust
import pytest
from aiokafka.client import AIOKafkaClient
from faust.types.auth import AuthProtocol, SASLMechanism

from stream_app.connection import security, ssl_context
from stream_app.faust_options import app_options
from stream_app.settings import Settings

SECRET = "correct-horse-battery"
LOGIN = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "me", "sasl_password": SECRET}


def credentials(**given: Any) -> Any:
    return app_options(Settings(**given))["broker_credentials"]


def test_a_plain_broker_needs_nothing() -> None:
    assert security(Settings()) == {}
    assert credentials() is None


@pytest.mark.parametrize(
    ("given", "protocol", "for_faust"),
    [
        ({"tls": True}, "SSL", AuthProtocol.SSL),
        (LOGIN, "SASL_PLAINTEXT", AuthProtocol.SASL_PLAINTEXT),
        ({**LOGIN, "tls": True}, "SASL_SSL", AuthProtocol.SASL_SSL),
    ],
)
def test_the_protocol(given: dict[str, Any], protocol: str, for_faust: AuthProtocol) -> None:
    options = security(Settings(**given))
    assert options["security_protocol"] == protocol
    assert isinstance(options.get("ssl_context"), ssl.SSLContext if given.get("tls") else type(None))
    assert credentials(**given).protocol == for_faust


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_the_login(mechanism: str) -> None:
    given = {**LOGIN, "sasl_mechanism": mechanism}
    options, for_faust = security(Settings(**given)), credentials(**given)
    assert isinstance(for_faust, faust.SASLCredentials)
    assert options["sasl_mechanism"] == mechanism
    assert for_faust.mechanism == SASLMechanism(mechanism)
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", SECRET)
    assert (for_faust.username, for_faust.password) == ("me", SECRET)


@pytest.mark.parametrize("given", [{"tls": True}, LOGIN, {**LOGIN, "tls": True}])
async def test_aiokafka_takes_them(given: dict[str, Any]) -> None:
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:9", **security(Settings(**given)))
    await client.close()


def test_tls_verifies_the_broker_and_its_name() -> None:
    context = ssl_context(Settings(tls=True))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert ssl_context(Settings()) is None


def test_faust_shows_no_password() -> None:
    app = faust.App("nextmove", **app_options(Settings(**LOGIN)))
    shown = [repr(app), repr(credentials(**LOGIN)), repr(app.conf), str(app.conf.broker_credentials)]
    assert SECRET not in "".join(shown)
