"""Finds the folders of adapters."""

from __future__ import annotations

from pathlib import Path

from shared.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]


def adapter_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.adapter`` names; None if the setting is empty.

    Raises FileNotFoundError, naming the setting, if there is no adapter in it.
    """
    return find_folder("adapter", settings.adapter, "generator", "serve the base model alone")


def find_folder(setting: str, value: str, made_by: str, without: str) -> Path | None:
    """The adapter folder that a setting's ``value`` names, as a path or relative to the project; None if it is empty.

    Raises FileNotFoundError if there is none, naming the setting and the remedies: the command that makes one
    (``made_by``), and what an empty setting does (``without``).
    """
    if not value:
        return None
    given = Path(value).expanduser()
    for folder in (given, PROJECT / given):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{setting}: no adapter_config.json in {given}; set BIOBRACKET_{setting.upper()} to a folder made by "
        f"`biobracket train {made_by}`, or to an empty string to {without}"
    )
