"""Where the folder of an adapter is."""

from __future__ import annotations

from pathlib import Path

from shared.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]


def adapter_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.adapter`` names; none where the setting is empty.

    FileNotFoundError, naming the setting, where no such folder holds an adapter.
    """
    return find_folder("adapter", settings.adapter, "generator", "serve the base model alone")


def find_folder(setting: str, value: str, made_by: str, without: str) -> Path | None:
    """The folder with an adapter that a setting's ``value`` names: as it stands, else below the project.

    FileNotFoundError, naming the setting and the remedies, where it is not there: the command that makes one
    (``made_by``), and what no folder means (``without``).
    """
    if not value:
        return None
    given = Path(value).expanduser()
    for folder in (given, PROJECT / given):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{setting}: no adapter_config.json in {given}; set BIOBRACKET_{setting.upper()} to a folder made by "
        f"`biobracket train {made_by}`, or to nothing to {without}"
    )
