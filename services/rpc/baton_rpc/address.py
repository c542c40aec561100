"""host:port as configurations name it."""

from typing import Annotated

from pydantic import BeforeValidator, Field

Address = Annotated[str, Field(pattern=r"^.+:\d{1,5}$", examples=["127.0.0.1:7000"])]


def _one_or_many(value: object) -> object:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


# Of one service in several processes. One may stand alone, and null means that there is none.
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_one_or_many)]


def host_of(address: str) -> str:
    """The host of host:port, without the brackets of an IPv6 address."""
    return address.rpartition(":")[0].strip("[]")
