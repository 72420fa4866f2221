"""What users can set: `TRACKHUB_WANDB_*`, `init(wandb={...})`, and the variables of wandb itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from trackhub import BackendOptions, VendorVariable


class WandbOptions(BackendOptions):
    """Where runs are written, and to whom they are sent."""

    mode: Annotated[
        Literal["offline", "online"],
        VendorVariable("WANDB_MODE"),
        Field(description="`offline` writes files, which `wandb sync` sends later; `online` sends them at once, too."),
    ] = "offline"
    directory: Annotated[
        Path,
        VendorVariable("WANDB_DIR"),
        Field(description="A folder `wandb` with the runs is made in it."),
    ] = Path()
    project: Annotated[
        str | None, VendorVariable("WANDB_PROJECT"), Field(description="By default, the project of the run.")
    ] = None
    entity: Annotated[
        str | None, VendorVariable("WANDB_ENTITY"), Field(description="The user or team the run belongs to.")
    ] = None
    base_url: Annotated[
        str | None, VendorVariable("WANDB_BASE_URL"), Field(description="The server, if it is one's own.")
    ] = None
    api_key: Annotated[
        SecretStr | None,
        VendorVariable("WANDB_API_KEY"),
        Field(description="Needed online, if wandb is not logged in."),
    ] = None
    timeout_seconds: Annotated[
        float, Field(gt=0, description="How long wandb's own process may take for one step before it is given up.")
    ] = 60.0
