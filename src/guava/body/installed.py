"""Which templates there are, and which of them a file belongs to."""

from __future__ import annotations

from guava.body.template import PLAIN_HEAD, Template, load_template
from guava.errors import GuavaError, MissingAssetError, TemplateMismatchError
from guava.folders import templates_folder


def installed_templates() -> tuple[str, ...]:
    """Names that :func:`guava.body.load_template` takes, the open template first."""
    folder = templates_folder()
    own = sorted(path.stem for path in folder.glob("*.template")) if folder.is_dir() else []
    names = ["open", *own]
    return (*names, *(name + PLAIN_HEAD for name in names if not name.endswith(PLAIN_HEAD)))


def template_for(template_hash: str, name: str = "", what: str = "This file") -> Template:
    """The installed template that a file belongs to.

    Args:
        template_hash: As the file says.
        name: The template's name as the file says; tried first, and named if it is missing.
        what: Subject of the error's sentence.

    Raises:
        MissingAssetError: No installed template has this hash.
        TemplateMismatchError: A template of that name is installed, but with other content.
    """
    names = installed_templates()
    for candidate in sorted(names, key=lambda own: own != name):
        template = _load(candidate)
        if template is not None and template.hash == template_hash:
            return template
    called = f"'{name}' " if name else ""
    if name in names and _load(name) is not None:
        raise TemplateMismatchError(
            f"{what} was made with another version of the template {called}(hash {template_hash[:12]}, "
            f"installed: {_load(name).hash[:12]}).",
            "Make it again from its photo or video, or add the files that the template was made from"
            + (" (and choose its teeth: guava assets teeth)." if name.startswith("smplx-flame") else "."),
        )
    raise MissingAssetError(
        f"{what} belongs to the template {called}(hash {template_hash[:12]}), which is not installed.",
        f"Installed: {', '.join(names)}. To add body models of yours: guava assets add --help",
    )


def choose_template(
    wanted: str | None, template_hash: str, name: str = "", what: str = "This file"
) -> Template:
    """The template that the user named, or else the one that a file belongs to.

    Raises:
        TemplateMismatchError: The file belongs to another template than the one named.
        MissingAssetError: The template is not installed.
    """
    if wanted is None:
        return template_for(template_hash, name, what)
    template = load_template(wanted)
    if template.hash != template_hash:
        called = f"'{name}'" if name else f"with the hash {template_hash[:12]}"
        raise TemplateMismatchError(
            f"{what} belongs to the template {called}, not to '{wanted}' ({template.hash[:12]}).",
            "Leave out --template: files find theirs by themselves.",
        )
    return template


def _load(name: str) -> Template | None:
    """The template, or None if its files are damaged or gone: another template's file must open all the
    same."""
    try:
        return load_template(name)
    except GuavaError:
        return None
