"""The options of the neptune backend, and what can be said of them without the client.

Apart from the backend because they are checked in `init`, where no client may be imported.
"""

from __future__ import annotations

import base64
import json
import re
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr

from trackhub.backend import BackendOptions, VendorVariable
from trackhub.errors import BackendUnavailable, MissingPackageError, SettingsError

PROBE_SECONDS = 5.0


def _our_mode(value: Any) -> Any:
    """Neptune's own names of modes: `async` and `sync` are ways to be online."""
    return "online" if value in ("async", "sync") else value


class NeptuneOptions(BackendOptions):
    """Where runs are kept in Neptune, and by which client."""

    project: Annotated[str | None, VendorVariable("NEPTUNE_PROJECT")] = Field(
        default=None, description="Project, as `workspace/name`. Needed online."
    )
    api_token: Annotated[SecretStr | None, VendorVariable("NEPTUNE_API_TOKEN")] = Field(
        default=None, description="API token of a self-hosted server; its address is in it. Needed online."
    )
    mode: Annotated[Literal["online", "offline"], BeforeValidator(_our_mode), VendorVariable("NEPTUNE_MODE")] = Field(
        default="online", description="`online`, or `offline` for directories that `neptune sync` can send later."
    )
    client: str = Field(
        default="neptune", description="The client's module: Neptune's own, or another of the same API, like `minfx`."
    )
    timeout_seconds: int = Field(
        default=60, ge=1, description="How long one step may take: opening, sending a batch; more for large files."
    )


def check(options: NeptuneOptions) -> None:
    """Refuse a client that is not installed, and what cannot reach a server.

    Raises:
        SettingsError: With what to write instead.
    """
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", options.client) is None:
        raise SettingsError(f"neptune client = {options.client!r} names no module: write neptune or minfx")
    root = options.client.partition(".")[0]
    if find_spec(root) is None:
        line = '"trackhub-sdk[neptune]"' if root == "neptune" else root
        raise MissingPackageError(
            f"the neptune backend needs the client {options.client}, which is not installed: pip install {line}"
        )
    if options.mode == "offline":
        return
    if options.project is None:
        raise SettingsError(
            "the neptune backend needs a project: set NEPTUNE_PROJECT=workspace/name or pass "
            'init(neptune={"project": "workspace/name"}); without a server: mode="offline"'
        )
    if root != "neptune":
        return  # Its tokens and defaults are its own.
    if options.api_token is None:
        raise SettingsError(
            "the neptune backend needs an API token of your server: set NEPTUNE_API_TOKEN; without a server: "
            'init(neptune={"mode": "offline"})'
        )
    if address_of(options) is None:
        raise SettingsError(
            "the API token (NEPTUNE_API_TOKEN) is none: it is a text that Neptune's own pages give, with the server's "
            "address in it. Copy it again as a whole"
        )


def address_of(options: NeptuneOptions) -> str | None:
    """The server's address, which is in the token."""
    if options.api_token is None:
        return None
    try:
        content = json.loads(base64.b64decode(options.api_token.get_secret_value().strip().encode()))
        address = content.get("api_url") or content["api_address"]
    except (ValueError, KeyError, AttributeError):
        return None
    return str(address)


def probe(options: NeptuneOptions) -> str | None:
    """What answers at the server's address; None offline, or where only the client itself could ask.

    Raises:
        BackendUnavailable: Nothing does.
    """
    address = address_of(options)
    if options.mode == "offline" or address is None or not address.startswith(("http://", "https://")):
        return None
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/backend/swagger.json", timeout=PROBE_SECONDS) as answer:
            return f"{address} answers ({answer.status})"
    except urllib.error.HTTPError as error:
        return f"{address} answers ({error.code})"
    except OSError as error:
        raise BackendUnavailable(f"{address} cannot be reached: {getattr(error, 'reason', error)}") from None
