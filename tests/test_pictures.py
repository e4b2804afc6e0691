from __future__ import annotations

import pytest
import torch

from swinexp.pictures import draw_attention, draw_confusion
from swinexp.train import prepare
from tests.conftest import small_run


@pytest.mark.parametrize(
    ("classes", "counted", "named"), [(2, True, True), (20, True, True), (21, False, True), (101, False, False)]
)
def test_a_confusion_matrix_says_what_it_has_room_for(classes: int, counted: bool, named: bool) -> None:
    confusion = torch.diag(torch.full((classes,), 1000))
    confusion[1, 0] = 3
    names = [f"${k} has a name that is too long" for k in range(classes)]
    axes = draw_confusion(confusion, names, "title").axes[0]
    counts = [text.get_text() for text in axes.texts]
    assert counts == (["1,000", "3"] + ["1,000"] * (classes - 1) if counted else [])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert ("$1 has a name that …" in labels) is named
    assert len(labels) == classes if named else len(labels) < 20


def test_only_long_names_are_turned() -> None:
    for names, angle in ((["6", "9"], 0), (["six", "9"], 90)):
        axes = draw_confusion(torch.eye(2), names, "title").axes[0]
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {angle}


def test_colours_are_shares_of_the_label() -> None:
    confusion = torch.tensor([[3, 1], [0, 0]])
    figure = draw_confusion(confusion, ["a", "b"], "a title of many words " * 5)
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert figure.get_suptitle().splitlines()[-1] == "3 of 4 images on the diagonal"
    assert len(figure.get_suptitle().splitlines()) > 2


def test_the_name_of_a_run_is_broken_at_its_commas() -> None:
    title = "quickstart,optimizer.lr=0.00391900035683,optimizer.weight_decay=0.00484361248574, val, checkpoint last"
    figure = draw_confusion(torch.eye(10), list("0123456789"), title)
    assert figure.get_suptitle().splitlines()[:-1] == [
        "quickstart,optimizer.lr=0.00391900035683,",
        "optimizer.weight_decay=0.00484361248574, val,",
        "checkpoint last",
    ]


def test_an_image_stands_beside_its_maps() -> None:
    model, dataset = prepare(small_run())
    figure = draw_attention(model.eval(), dataset, dataset.val, 2, "last")
    figure.draw_without_rendering()
    cells = [axes.get_position() for axes in figure.axes if axes.images]
    for row in (cells[:4], cells[4:]):
        assert [(cell.y0, cell.y1) for cell in row] == [pytest.approx((row[0].y0, row[0].y1))] * 4


def test_the_even_share_is_the_middle_of_the_scale() -> None:
    model, dataset = prepare(small_run())
    figure = draw_attention(model.eval(), dataset, dataset.val, 2, "last")
    overlays = [axes.images[1] for axes in figure.axes if len(axes.images) == 2]
    assert len(overlays) == 2 * 3  # images by the last block of two stages, and the rollout
    assert [float(drawn.norm(1.0)) for drawn in overlays] == [0.5] * len(overlays)
    assert all(drawn.norm.vmax >= drawn.get_array().max() for drawn in overlays)
