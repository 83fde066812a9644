"""The recipe of `unmask serve`: what requests leave out, the engine's limits, and the server's."""

from __future__ import annotations

from pydantic import Field

from unmask.config.sections import EngineLimits, Section
from unmask.types import SamplingParams


class ServerConfig(Section):
    """Where the server listens and what it puts up with."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 = all of this machine's")
    port: int = Field(8000, ge=0, le=65535, description="0 = any that is free")
    name: str = Field("", description="name of the model in the API; empty = that of the checkpoint's folder")
    max_context: int | None = Field(
        None, ge=2, description="tokens of prompt and answer together; None = as many as the model's config speaks of"
    )
    max_choices: int = Field(16, ge=1, le=1024, description="answers (n, times prompts) that one request may ask for")
    max_queue: int = Field(256, ge=0, description="answers that may wait for a place among engine.max_sequences; beyond: 429")
    max_per_key: int | None = Field(None, ge=1, description="answers at a time for each API key; None = no limit; beyond: 429")
    max_body_mb: float = Field(1.0, gt=0, le=64, description="of a request's body; beyond: 413")
    body_timeout_s: float = Field(30.0, gt=0, description="for a request to arrive whole, once it has begun; beyond: 408")
    request_timeout_s: float = Field(600.0, gt=0, description="for an answer; beyond: 504, in a stream an error event")
    write_timeout_s: float = Field(60.0, gt=0, description="for a client to take what it was sent; beyond: cut off")
    keep_alive_s: float = Field(30.0, gt=0, description="an idle connection is kept so long")
    shutdown_timeout_s: float = Field(30.0, ge=0, description="for what is in flight, once the server is told to end")
    system_prompt: str = Field("", description="a system turn for conversations that have none")
    response_prefix: str = Field("", description="text that answers to conversations are begun with, which they do not repeat")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names by which the server may be called (header Host); * = any; empty = of a server that only this "
        "machine reaches this machine's, else any",
    )
    cors_origins: tuple[str, ...] = Field(
        (), strict=False, description="origins whose pages may call the API from a browser; * = all; empty = none"
    )


class ServeRecipe(SamplingParams):
    """`unmask serve`: sampling parameters for what a request leaves out; the engine's and the server's limits as tables."""

    engine: EngineLimits = Field(default_factory=EngineLimits)
    server: ServerConfig = Field(default_factory=ServerConfig)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(**self.model_dump(exclude={"engine", "server"}))
