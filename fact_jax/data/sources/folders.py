"""A data set of one's own: a folder of pictures with a subfolder for each class.

    DATA_DIR/flowers/train/daisy/1.jpg    beside train/ there may be val/ and test/
    DATA_DIR/flowers/daisy/1.jpg          or no such folders: the parts are drawn

It is the task 'folder_flowers' (and 'folder_flowers_4shot'). Missing parts are drawn: the test part
where neither test/ nor val/ holds labelled pictures, then the part that settings are chosen on.
Classes are numbered in the order of their names, as by torchvision's ImageFolder.
"""

from etils import epath

from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.class_folders import Parts, read_parts
from fact_jax.data.sources.drawing import (
    DRAWN_SHARE,
    TEST,
    TRAIN,
    VAL,
    complete_parts,
    content_fingerprints,
    draw_note,
    own_place,
)
from fact_jax.data.sources.lists import Item, ListsSource
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.text import printable_line


def read_folder(task: Task, settings: DataSettings) -> ListsSource:
    """The pictures of the task's folder as lists 'train', 'val' and 'test', the classes mixed.

    With `skip_damaged` the lists are drawn as from a folder without its damaged pictures.

    Raises:
      UserError: mock data are asked for, or there is no such folder, or it has fewer than two
        classes, or a class without pictures, or too few of them.
    """
    where, root = f"Task {task.name}:", _root(task, settings)
    parts = read_parts(where, root, settings.skip_damaged)
    names = sorted(parts.pictures[TRAIN])
    _check_classes(where, root, names, parts)
    items = {
        part: [Item(path, names.index(name)) for name, paths in classes.items() for path in paths]
        for part, classes in parts.pictures.items()
    }
    items, drawn = complete_parts(f"{where} {root}", items, len(names))
    source = parts.source | {part: f"one image in {DRAWN_SHARE} of each class" for part in drawn}
    note = "; ".join(f"{part}: {source[part]}" for part in (TRAIN, VAL, TEST)) + draw_note(drawn)
    if parts.note:
        note += f"; {parts.note}"
    return ListsSource(
        task=task,
        kind="classes",
        folder=root,
        images=root,
        items=items,
        class_names=[printable_line(name) for name in names],
        fingerprints=content_fingerprints(where, root, items),
        note=note,
        left_out=parts.damaged,
    )


def _root(task: Task, settings: DataSettings) -> epath.Path:
    """The task's folder; UserError if there is none."""
    root = own_place(task, settings, "a folder")
    if not root.is_dir():
        raise UserError(
            f"Task {task.name}: {root} is no folder. Expected {root}/train/CLASS/*.jpg and "
            f"{root}/test/CLASS/*.jpg, or {root}/CLASS/*.jpg."
        )
    return root


def _check_classes(where: str, root: epath.Path, names: list[str], parts: Parts) -> None:
    """UserError if the parts have other classes than train, or there is only one."""
    shown = [printable_line(name) for name in names]
    for part, classes in parts.pictures.items():
        if unknown := sorted(set(classes) - set(names)):
            raise UserError(
                f"{where} {root} has pictures of '{printable_line(unknown[0])}' in its {part} "
                f"part, but none in train. The classes of train are {', '.join(shown[:10])}"
                f"{' and so on' if len(names) > 10 else ''}."
            )
    if len(names) < 2:
        raise UserError(
            f"{where} {root} has one class, '{shown[0]}'; expected a folder for each of two or "
            "more. Is it one level too high, or too low?"
        )
