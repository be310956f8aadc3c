"""Settings: environment before file before default, one error for all that is wrong, and no secret on any page."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from stream_app.expiry import most_expired
from stream_app.settings import Settings

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours, and an empty working directory."""
    for name in [name for name in os.environ if name.upper().startswith("NEXTMOVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def errors(**values: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return {".".join(map(str, error["loc"])): error["type"] for error in caught.value.errors()}


def test_the_defaults_are_a_worker_on_this_machine() -> None:
    settings = Settings()
    assert settings.broker == "127.0.0.1:9092"
    assert settings.web_host == "127.0.0.1"
    assert settings.model is None
    assert settings.topics == ("user-events", "predictions", "user-events.dlq", "nextmove-histories-changelog")


def test_environment_before_file_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nextmove.toml").write_text('app_id = "from-file"\nweb_port = 9000\n', "utf-8")
    assert (Settings().app_id, Settings().web_port, Settings().partitions) == ("from-file", 9000, 4)
    monkeypatch.setenv("NEXTMOVE_APP_ID", "from-environment")
    assert (Settings().app_id, Settings().web_port) == ("from-environment", 9000)
    assert Settings(app_id="from-argument").app_id == "from-argument"
    assert Settings().changelog_topic == "from-environment-histories-changelog"


def test_the_file_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("nextmove.toml").write_text('app_id = "here"\n', "utf-8")
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text('app_id = "elsewhere"\n', "utf-8")
    monkeypatch.setenv("NEXTMOVE_CONFIG", str(elsewhere))
    assert Settings().app_id == "elsewhere"


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    Path("nextmove.toml").write_text('app_id = "not-this-one"\n', "utf-8")
    named = tmp_path if kind == "directory" else tmp_path / "nextmove.tml"
    monkeypatch.setenv("NEXTMOVE_CONFIG", str(named))
    with pytest.raises(ValueError, match=f"NEXTMOVE_CONFIG names {named}, and there is no such file"):
        Settings()


def test_a_file_with_a_field_nobody_knows_is_refused() -> None:
    Path("nextmove.toml").write_text("web_prot = 9000\n", "utf-8")
    assert errors() == {"web_prot": "extra_forbidden"}


def test_an_argument_nobody_knows_is_refused() -> None:
    assert errors(web_prot=9000) == {"web_prot": "extra_forbidden"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "tpu"),
        ("top_k", 0),
        ("top_k", 1001),
        ("app_id", "a b"),
        ("app_id", ""),
        ("input_topic", "a/b"),
        ("output_topic", "x" * 250),
        ("partitions", 0),
        ("broker_timeout_s", 0),
        ("max_event_bytes", -1),
        ("lateness_s", "soon"),
        ("store", "sqlite://"),
        ("cached_users", 9_999),
        ("chunk_records", 16_385),
        ("chunk_records_per_user", 0),
        ("chunks_queued", 0),
        ("idempotent", "perhaps"),
        ("batch_bytes", 1023),
        ("chunks_prepared", 17),
        ("linger_ms", -1),
        ("compression", "zip"),
        ("web_port", 0),
        ("web_port", 65536),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_bounds_is_one_error_that_names_its_field(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(errors(**{field: value})) == [field]
    monkeypatch.setenv(f"NEXTMOVE_{field.upper()}", str(value))
    assert list(errors()) == [field]


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTMOVE_WEB_PORT", "http")
    monkeypatch.setenv("NEXTMOVE_PARTITIONS", "0")
    Path("nextmove.toml").write_text('store = "sqlite://"\n', "utf-8")
    assert set(errors()) == {"web_port", "partitions", "store"}


def test_what_is_in_work_has_room_in_the_cache() -> None:
    """The users of the records, and those who expire with them."""
    large = {"chunk_records": 4096, "chunks_prepared": 16}
    needed = Settings(**large, cached_users=10**6).chunks_in_work * (4096 + most_expired(4096))
    with pytest.raises(
        ValidationError, match=f"cached_users must be at least {needed}: so many may be in work at once"
    ):
        Settings(**large, cached_users=needed - 1)
    Settings(**large, cached_users=needed)
    assert Settings().chunks_in_work == 1 + 8 + 1 + 2 * (8 + 1)


@pytest.mark.parametrize("missing", ["sasl_username", "sasl_password"])
def test_half_a_login_is_refused(missing: str) -> None:
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": SECRET}
    Settings(**login)
    assert errors(**{**login, missing: None}) == {"": "value_error"}


@pytest.mark.parametrize("content", [None, b"no certificate"], ids=["missing", "no certificate"])
def test_a_certificate_authority_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValidationError, match=f"tls_ca_file {file}: "):
        Settings(tls=True, tls_ca_file=file)


def test_a_password_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in [("MECHANISM", "PLAIN"), ("USERNAME", "u"), ("PASSWORD", SECRET)]:
        monkeypatch.setenv(f"NEXTMOVE_SASL_{name}", value)
    settings = Settings()
    assert isinstance(settings.sasl_password, SecretStr)
    assert settings.sasl_password.get_secret_value() == SECRET
    shown = [repr(settings), str(settings), f"{settings}", settings.model_dump_json(), str(settings.model_dump())]
    assert all("sasl_password" in page for page in shown)
    assert not any(SECRET in page for page in shown)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sasl_username": None},
        {"sasl_mechanism": "PLAIN ", "sasl_username": "u"},
        {"web_port": 0},
    ],
)
def test_a_password_is_in_no_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{"sasl_mechanism": "PLAIN", "sasl_password": SECRET, **wrong})
    assert SECRET not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.web_port = 1  # type: ignore[misc]  # the very thing


def test_every_field_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    secrets = [name for name in Settings.model_fields if any(word in name for word in ("password", "secret", "token"))]
    assert secrets == ["sasl_password"]


def test_settings_travel_between_processes() -> None:
    settings = Settings(web_port=9000)
    assert pickle.loads(pickle.dumps(settings)) == settings
