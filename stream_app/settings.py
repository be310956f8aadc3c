"""Every setting of a worker, in one frozen object: environment before file before default.

The environment's names are the fields' in capitals behind `NEXTMOVE_`; the file is TOML, `nextmove.toml` in the working
directory or whatever `NEXTMOVE_CONFIG` names.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from stream_app.expiry import most_expired

DAY_S = 24 * 3600

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]


class Settings(BaseSettings):
    """See each field; `nextmove settings` prints them as they are in force, secrets redacted."""

    model_config = SettingsConfigDict(
        env_prefix="NEXTMOVE_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # which may be a password
    )

    # What to predict with
    model: Path | None = Field(None, description="directory of the model artefact, or a text file that holds its path")
    model_check_s: Annotated[float, Field(ge=0)] = Field(
        5.0, description="how often the worker looks whether another model or list of banned items lies there; 0: never"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; auto: CUDA if there is one"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0,
        description="threads of the model on a CPU, half of them of low priority, for the stream needs a core now and then; "
        "0: all cores but one, of two both",
    )
    states_mb: Annotated[int, Field(ge=0)] = Field(
        512,
        description="memory for what the model has computed of users, kept for their next events; 0: every window is "
        "computed anew. For models whose window rule has a stride",
    )
    states_precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="of those states and of the steps from them; bfloat16 takes half of the memory, and a record that comes again "
        "may be answered a little differently; auto: bfloat16 where the device is faster with it",
    )
    few_in_int8: bool = Field(
        False,
        description="on a CPU that does not score a catalogue of more than 20,000 items in int8 anyway, answer up to eight events that come "
        "together from a copy in int8 (a byte more per number): one takes about .6 of the time, four .8, but a record that comes again may be "
        "answered a little differently",
    )
    compile: bool = Field(
        False,
        description="compile the model's steps, where a C++ compiler is on the machine: several times faster, but a worker is "
        "ready one to six minutes later the first time (a catalogue above 20,000 items needs most), and a second later from then on",
    )
    device_timeout_s: Seconds = Field(
        120.0, description="a device silent for longer ends the worker, for whoever supervises it to start it again"
    )
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="items in a prediction")
    banned_items: Path | None = Field(
        None,
        description="text file of items that are never listed, one id per line; a `.gz` is unpacked. Read again when it changes",
    )
    hide_seen: bool = Field(False, description="items of the user's window are not listed")
    behaviors: Path | None = Field(None, description="behaviour vocabulary; default: the one that ships with NextMove")

    # Where events come from and predictions go
    broker: str = Field("127.0.0.1:9092", description="HOST:PORT of Kafka, several separated by commas")
    app_id: TopicName = Field("nextmove", description="consumer group and prefix of the changelog topic")
    input_topic: TopicName = Field("user-events", description="events, keyed by user id")
    output_topic: TopicName = Field("predictions", description="predictions, keyed by user id")
    dead_letter_topic: TopicName = Field("user-events.dlq", description="rejected records, untouched")
    partitions: Count = Field(4, description="partitions of the topics that `nextmove topics` creates")
    broker_timeout_s: Seconds = Field(10.0, description="how long to look for a broker before giving up")

    session_timeout_s: Annotated[float, Field(ge=6, le=90)] = Field(
        20.0, description="a worker silent for so long has lost its partitions"
    )
    instance_id: str | None = Field(None, description="static member of the group: a quick restart moves no partitions")

    # Security
    tls: bool = Field(False, description="speak TLS to the broker")
    tls_ca_file: Path | None = Field(None, description="certificate authority; default: the system's")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(None, description="SASL login")
    sasl_username: str | None = Field(None, description="user of the SASL login")
    sasl_password: SecretStr | None = Field(None, description="password of the SASL login")

    # What an event may be
    max_event_bytes: Count = Field(1_000_000, description="larger records become dead letters")
    max_future_s: Seconds = Field(3600.0, description="how far an event may lie ahead of its record's timestamp")
    lateness_s: Seconds = Field(3600.0, description="how far an event may lie behind its user's latest event")

    # State
    idle_s: Seconds | None = Field(
        None,
        description="a user who is so far behind the newest event of the partition is forgotten; default and least: the "
        "model's window age + `lateness_s`, beyond which no prediction changes; `inf`: nobody is",
    )
    store: Literal["memory://", "rocksdb://"] = Field("memory://", description="where the table of histories lives")
    data_dir: Path = Field(Path("var/nextmove"), description="RocksDB files; one directory per worker")
    cached_users: Annotated[int, Field(ge=10_000)] = Field(
        120_000, description="decoded histories kept in memory at least; at most twice as many"
    )

    # Batches
    fetch_bytes: Annotated[int, Field(ge=1024)] = Field(
        1_048_576, description="most bytes fetched of a partition at a time; a larger record comes all the same"
    )
    fetch_interval_ms: Annotated[int, Field(ge=0, le=1000)] = Field(
        20, description="least time between two fetches: where little comes, what comes meanwhile is answered together"
    )
    chunk_records: Annotated[int, Field(ge=1, le=16_384)] = Field(2048, description="most records of a chunk")
    chunk_bytes: Count = Field(4_000_000, description="most bytes of a chunk; a larger record stands alone")
    chunk_records_per_user: Annotated[int, Field(ge=1, le=1024)] = Field(
        256, description="most records of one user in a chunk; what is not committed is kept in the user's history"
    )
    scored_per_chunk: Count = Field(
        64, description="live quality: about so many events of a chunk are scored; of larger chunks a sample of users"
    )
    chunks_queued: Count = Field(4, description="chunks read ahead; dropped when partitions move")
    chunks_prepared: Annotated[int, Field(ge=1, le=16)] = Field(
        8, description="chunks folded while others are on the device, to go there together, one of each partition"
    )

    # Producing
    producers: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="producers side by side; each has one request under way to a broker"
    )
    idempotent: bool = Field(True, description="the broker drops what a retry would write twice")
    batch_bytes: Annotated[int, Field(ge=1024)] = Field(
        950_000, description="most bytes of a batch for one partition; less than the broker's message.max.bytes"
    )
    linger_ms: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="wait for batches of other partitions, to go in one request"
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("none", description="of all that is produced")
    max_request_bytes: Count = Field(
        8_000_000, description="largest record that can be produced, dead letters included"
    )

    # The worker's own web server
    web_host: str = Field("127.0.0.1", description="address of /metrics, /healthz and /readyz")
    web_port: Port = Field(8090, description="port of /metrics, /healthz and /readyz")
    stall_s: Seconds = Field(120.0, description="a chunk in work for longer makes /healthz answer 503")
    shutdown_s: Seconds = Field(
        30.0, description="a worker told to stop is gone after this time, whatever it waits for"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["console", "json"] = Field("console", description="for people or for machines")

    @model_validator(mode="after")
    def _room_for_users(self) -> Settings:
        users = self.chunk_records + most_expired(self.chunk_records)  # of a chunk
        in_work = self.chunks_in_work * users
        if self.cached_users < in_work:
            raise ValueError(f"cached_users must be at least {in_work}: so many may be in work at once")
        return self

    @model_validator(mode="after")
    def _no_misspelt_variable(self) -> Settings:
        names = {f"NEXTMOVE_{name.upper()}" for name in type(self).model_fields} | {"NEXTMOVE_CONFIG"}
        unknown = sorted(name for name in os.environ if name.startswith("NEXTMOVE_") and name not in names)
        if unknown:
            raise ValueError(f"no such setting: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _complete_login(self) -> Settings:
        if self.sasl_mechanism and not (self.sasl_username and self.sasl_password):
            raise ValueError("sasl_mechanism needs sasl_username and sasl_password")
        return self

    @model_validator(mode="after")
    def _usable_authority(self) -> Settings:
        if self.tls_ca_file:
            try:
                ssl.create_default_context(cafile=self.tls_ca_file)
            except OSError as error:
                raise ValueError(f"tls_ca_file {self.tls_ca_file}: {error.strerror or error}") from None
        return self

    @property
    def chunks_in_work(self) -> int:
        """So many chunks at most are folded and not written yet; `agent.py` has the queues.

        Those that are prepared, one before and one behind their queue; and those that were on the device together, twice:
        on it or being concluded, and on their way.
        """
        together = self.chunks_prepared + 1
        return self.chunks_prepared + 2 + 2 * together

    @property
    def changelog_topic(self) -> str:
        """The compacted topic behind the table of histories; the name is Faust's rule."""
        return f"{self.app_id}-histories-changelog"

    @property
    def topics(self) -> tuple[str, str, str, str]:
        """All topics of the worker; their partition counts must be equal."""
        return self.input_topic, self.output_topic, self.dead_letter_topic, self.changelog_topic

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file, which must be there if it was named."""
        named = os.environ.get("NEXTMOVE_CONFIG")
        if named and not Path(named).is_file():
            raise ValueError(f"NEXTMOVE_CONFIG names {named}, and there is no such file")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(named or "nextmove.toml"))
