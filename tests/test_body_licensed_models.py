"""The user's SMPL-X, FLAME and tables become the template "smplx-flame"; what does not fit is named.

The files are synthetic (see ``synthetic_models``): the owners' formats and sizes, not their numbers. What
thus cannot be checked here: that the owners' UV layout gives the release's 199,008 texels.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import synthetic_models as synthetic
import torch
from scipy.spatial import cKDTree
from synthetic_models import synthetic_sources, synthetic_template

from guava.body import EHM, Identity, Pose, canonical_vertices, load_template, plain_head, save_template
from guava.body.licensed import (
    NATURAL_TEETH,
    TABLES,
    arrays,
    convert,
    read_flame,
    read_smplx,
    read_tables,
    store,
    teeth,
)
from guava.body.licensed.convert import FaceFinder, nearest_barycentrics
from guava.body.licensed.uv_table import uv_table
from guava.body.template import read_template
from guava.commands.main import main
from guava.errors import FileFormatError, InputError, MissingAssetError


@pytest.fixture(scope="module")
def sources():
    return synthetic_sources()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owners")
    synthetic.write_sources(folder)
    return folder


@pytest.fixture(scope="module")
def body(files):
    return read_smplx(files / "smplx" / "SMPLX_NEUTRAL.npz")


@pytest.fixture(scope="module")
def head(files):
    return read_flame(files / "flame")


@pytest.fixture(scope="module")
def template():
    return synthetic_template()


@pytest.fixture()
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GUAVA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- the synthetic files themselves ---


def test_synthetic_models_have_the_owners_sizes(sources):
    s, f = sources.smplx, sources.flame
    assert (
        s.v_template.shape == (10475, 3) and s.f.shape == (20908, 3) and s.posedirs.shape == (10475, 3, 486)
    )
    assert f.v_template.shape == (5023, 3) and f.f.shape == (9976, 3) and f.posedirs.shape == (5023, 3, 36)
    assert s.shapedirs.shape == (10475, 3, 400) and f.shapedirs.shape == (5023, 3, 400)
    assert sources.uv.shape == (11313, 2) and len(np.unique(s.f)) == 10475 and len(np.unique(f.f)) == 5023
    assert len(np.unique(sources.flame_ids)) == 5023
    # Deterministic, and a person: joints lie inside the body.
    joints = s.J_regressor @ s.v_template
    assert np.abs(joints - load_template().body.joints_template.numpy()).max() < 0.001


# --- readers ---


def same(model, arrays) -> None:
    assert np.allclose(model.v_template, arrays.v_template) and np.array_equal(model.faces, arrays.f)
    assert np.allclose(model.shape_dirs, arrays.shapedirs[..., :300])
    assert np.allclose(model.expression_dirs, arrays.shapedirs[..., 300:350])
    assert np.allclose(model.pose_dirs, arrays.posedirs) and np.allclose(model.weights, arrays.weights)
    assert np.allclose(model.joint_regressor, arrays.J_regressor)
    assert model.parents[0] == -1 and np.array_equal(model.parents[1:], arrays.kintree_table[0, 1:])


def test_smplx_from_npz_and_pkl(body, sources, tmp_path):
    same(body, sources.smplx)
    synthetic.write_smplx_pkl(tmp_path / "SMPLX_NEUTRAL.pkl", sources.smplx)
    same(read_smplx(tmp_path), sources.smplx)  # found in its folder


def test_flame_2020_and_2023(head, sources, tmp_path):
    same(head, sources.flame)
    synthetic.write_flame_2023(tmp_path / "flame2023.pkl", sources.flame)
    same(read_flame(tmp_path / "flame2023.pkl"), sources.flame)


def small_smplx(**changes) -> dict:
    """The keys of a model's file; only what is wrong need be right, it is looked at first."""
    return {"v_template": np.zeros((10475, 3)), **changes}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("SMPLX_MALE.npz", small_smplx(), "male SMPL-X model; the neutral one"),
        ("smplx_female.npz", small_smplx(), "female SMPL-X"),
        ("a.npz", small_smplx(gender=np.array("female")), "female SMPL-X"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.zeros((6890, 3))}, "SMPL or SMPL"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.zeros((778, 3))}, "MANO"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.zeros((5023, 3))}, "guava assets add flame"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.zeros((77, 3))}, "77 vertices"),
        ("SMPLX_NEUTRAL.npz", {"f": np.zeros((20908, 3), int)}, "'v_template' is missing"),
        ("SMPLX_NEUTRAL.npz", small_smplx(), "'shapedirs' is missing"),
        ("SMPLX_NEUTRAL.npz", small_smplx(shapedirs=np.zeros((10475, 3, 20))), "SMPL-X v1.1"),
        ("SMPLX_NEUTRAL.npz", small_smplx(shapedirs=np.zeros((10475, 400, 3), np.float32)), "expected"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.full((10475, 3), np.nan)}, "not finite"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.full((10475, 3), "x")}, "not an array of numbers"),
        ("SMPLX_NEUTRAL.npz", {"v_template": np.array({"a": 1})}, "not an array of numbers"),
    ],
)
def test_wrong_models_are_named(tmp_path, name, content, message):
    np.savez(tmp_path / name, **content)
    with pytest.raises(FileFormatError, match=message) as error:
        read_smplx(tmp_path / name)
    assert name in str(error.value) and "smpl-x.is.tue.mpg.de" in str(error.value)


def flame_arrays(sources, **changes) -> dict:
    arrays = {n: getattr(sources.flame, n) for n in synthetic.Model.__dataclass_fields__}
    arrays.update(changes)
    return {k: v for k, v in arrays.items() if v is not None}


def write_flame(path, sources, **changes) -> None:
    path.write_bytes(pickle.dumps(flame_arrays(sources, **changes), protocol=2))


def test_every_array_of_a_model_is_checked(tmp_path, sources, monkeypatch):
    f, path = sources.flame, tmp_path / "generic_model.pkl"
    content: dict = {}
    monkeypatch.setattr(arrays, "read_arrays", lambda path: content)
    path.touch()
    content.update(flame_arrays(sources))
    read_flame(path)
    tree, faces = f.kintree_table.copy(), f.f.copy()
    tree[0, 2], faces[7, 1] = 0, 5023
    for changes, message in (
        ({"posedirs": None}, "'posedirs' is missing"),
        ({"posedirs": f.posedirs[..., :27]}, "'posedirs' is"),
        ({"J_regressor": f.J_regressor * 2}, "sum to one"),
        ({"weights": f.weights[:, :4]}, "'weights' is"),
        ({"weights": f.weights * 0}, "sum to one"),
        ({"kintree_table": tree}, "hang together"),
        ({"f": faces}, "vertices that are not there"),
        ({"f": f.f[:-1]}, "'f' is"),
        ({"f": f.f.astype(float)}, "array of integers"),
        ({"v_template": f.v_template * 1000}, "size in metres"),
    ):
        content.clear()
        content.update(flame_arrays(sources, **changes))
        with pytest.raises(FileFormatError, match=message):
            read_flame(path)
    monkeypatch.undo()
    path.write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(FileFormatError, match="no named arrays"):
        read_flame(path)


def test_truncated_models_are_refused(files, tmp_path):
    for kind, read, name in (
        ("smplx", read_smplx, "SMPLX_NEUTRAL.npz"),
        ("flame", read_flame, "generic_model.pkl"),
    ):
        whole = (files / kind / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(FileFormatError, match=name):
            read(tmp_path / name)


def test_folders_without_the_model_say_so(tmp_path):
    with pytest.raises(InputError, match=re.escape("SMPLX_NEUTRAL.npz")):
        read_smplx(tmp_path)
    (tmp_path / "models_smplx_v1_1.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=re.escape("Unpack models_smplx_v1_1.zip")):
        read_smplx(tmp_path)
    with pytest.raises(InputError):
        read_smplx(tmp_path / "nowhere")


# --- tables ---


def test_tables_are_found_by_name_and_content(files, sources, tmp_path):
    found = read_tables(files / "tables")
    assert set(found.arrays) == {t.name for t in TABLES}
    a = found.arrays
    assert np.array_equal(a["flame_ids"]["flame_ids"], sources.flame_ids)
    assert np.array_equal(a["hands"]["right_hand_ids"], sources.hands[1])
    assert np.allclose(a["eyelids"]["eyelid_dirs"][..., 0], sources.eyelids[0])
    assert np.allclose(a["uv"]["uv"], sources.uv, atol=1e-8) and np.array_equal(
        a["uv"]["uv_faces"], sources.uv_faces
    )
    assert np.array_equal(a["landmarks"]["full_faces"], sources.full[0][0])
    older = {
        "static_lmk_faces_idx": sources.static[0], "static_lmk_bary_coords": sources.static[1],
        "dynamic_lmk_faces_idx": sources.dynamic[0], "dynamic_lmk_bary_coords": sources.dynamic[1],
    }  # fmt: skip
    np.save(tmp_path / "landmark_embedding.npy", older, allow_pickle=True)
    without = read_tables(tmp_path).arrays["landmarks"]["full_faces"]
    assert np.array_equal(without, np.concatenate([sources.dynamic[0][0], sources.static[0]]))
    (tmp_path / "landmark_embedding.npy").unlink()
    assert np.array_equal(a["mediapipe"]["mediapipe_ids"], sources.mediapipe[2])
    # A UV layout is known by its content; an OBJ of something else is left alone.
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "my layout.OBJ").write_text((files / "tables" / "smplx_uv.obj").read_text())
    (tmp_path / "chair.obj").write_text("v 0 0 0\nvt 0 0\nf 1/1 1/1 1/1\n")
    assert set(read_tables(tmp_path).arrays) == {"uv"}
    # One file adds its own table only; either eyelid stands for both.
    assert set(read_tables(files / "tables" / "r_eyelid.npy").arrays) == {"eyelids"}
    with pytest.raises(InputError, match="holds none"):
        read_tables(files / "flame")


def test_wrong_tables_are_named(files, sources, tmp_path):
    def refused(name: str, message: str) -> None:
        with pytest.raises(FileFormatError, match=message) as error:
            read_tables(tmp_path / name)
        assert name in str(error.value)

    ids = sources.flame_ids.copy()
    name = "SMPL-X__FLAME_vertex_ids.npy"
    for wrong, message in (
        (ids[:-1], "expected"), (ids.astype(float), "integers"), (ids + 9000, "outside"), (ids * 0, "twice"),
    ):  # fmt: skip
        np.save(tmp_path / name, wrong)
        refused(name, message)
    (tmp_path / "MANO_SMPLX_vertex_ids.pkl").write_bytes(pickle.dumps({"left_hand": sources.hands[0]}))
    refused("MANO_SMPLX_vertex_ids.pkl", "right_hand")
    np.save(tmp_path / "l_eyelid.npy", sources.eyelids[0])
    np.save(tmp_path / "r_eyelid.npy", sources.eyelids[1][:, :2])
    refused("r_eyelid.npy", "lid directions")
    np.savez(
        tmp_path / "mediapipe_landmark_embedding.npz", lmk_face_idx=sources.mediapipe[0],
        lmk_b_coords=sources.mediapipe[1] * 2, landmark_indices=sources.mediapipe[2],
    )  # fmt: skip
    refused("mediapipe_landmark_embedding.npz", "sum to one")
    text = (files / "tables" / "smplx_uv.obj").read_text()
    (tmp_path / "smplx_uv.obj").write_text(text.rsplit("\n", 2)[0])
    refused("smplx_uv.obj", "20,907")
    (tmp_path / "smplx_uv.obj").write_text(text.replace("\nf ", "\nf 1 ", 1))
    refused("smplx_uv.obj", "no triangle mesh")


# --- the template ---


def test_sizes_of_the_template(template):
    body, head = template.body, template.head
    assert body.num_vertices == 10475 + 120 and head.num_vertices == 5023 + 120
    assert template.faces.shape == (20908 + 168, 3) and template.uv.shape == (11313 + 120, 2)
    assert body.num_joints == 55 and body.num_shape == 300 and body.num_expression == 50
    assert head.num_joints == 5 and head.num_shape == 300 and head.num_expression == 50
    assert body.pose_dirs.shape == (10595, 3, 486) and head.pose_dirs.shape == (5143, 3, 36)
    assert template.eyelid_dirs.shape == (5143, 3, 2) and (template.head_blend == 1).all()
    assert template.regress_joints and template.expression_names[49] == "flame_expression_49"
    assert [len(ids) for ids in template.hand_vertex_ids] == [778, 778]
    assert template.uv_table.face_ids.shape == (512, 512)
    assert "licence" in template.provenance["licence"] and len(template.provenance["tables"]) == len(TABLES)


def test_regions_lie_where_their_names_say(template):
    centre = canonical_vertices(template)[template.faces].mean(1)
    names = set(template.part_names)
    assert names == set(load_template().part_names)
    for name in names - {"tongue"}:
        assert template.part(name).sum() >= 80, name
    assert (centre[template.part("left_hand", "left_arm", "left_eyeball")][:, 0] > 0).all()
    assert (centre[template.part("right_hand", "right_arm", "right_eyeball")][:, 0] < 0).all()
    lips = centre[template.part("upper_teeth", "lower_teeth")].mean(0)
    assert (centre[template.part("mouth_cavity")] - lips).norm(dim=1).max() < 0.12
    eyes = [centre[template.part(f"{side}_eyeball")].mean(0) for side in ("left", "right")]
    off = torch.stack([(centre[template.part("eye_sockets")] - eye).norm(dim=1) for eye in eyes]).amin(0)
    assert off.max() < 0.03
    # What the open template calls face, cavity and sockets is mostly called so here too.
    own = load_template()
    middle = own.body.v_template[own.faces].mean(1)
    for name, least in (
        ("face", 0.9),
        ("scalp", 0.85),
        ("torso", 0.85),
        ("mouth_cavity", 0.8),
        ("legs", 0.95),
    ):
        nearest = cKDTree(middle).query(centre[template.part(name)])[1]
        assert own.part(name)[nearest].float().mean() > least, name


def test_landmarks_and_named_points_lie_where_the_open_template_has_them(template):
    own = load_template()

    def positions(of, name):
        table, v = of.landmarks[name], canonical_vertices(of)
        return (v[of.faces[table.faces]] * table.barycentrics[..., None]).sum(1), table.weights

    for name, inner in (("ibug68", slice(17, 68)), ("mediapipe478", slice(0, 478))):
        here, weights = positions(template, name)
        there, _ = positions(own, name)
        used = torch.zeros(len(weights), dtype=torch.bool)
        used[inner] = True
        used &= weights > 0
        off = (here - there)[used].norm(dim=1)
        assert off.max() < 0.006 and off.median() < 0.0005  # the irises are of another size
    assert int((weights > 0).sum()) == 105 + 10  # the irises are known by their vertices
    assert (template.landmarks["ibug68"].weights[:17] < 0.5).all()
    for name, vertex in template.surface_points.items():
        point = own.body.v_template[own.surface_points[name]]
        assert (template.body.v_template[vertex] - point).norm() < 0.025, name
    assert template.provenance["landmarks_moved_to_the_nearest_face"] == 0


def test_landmarks_on_faces_that_the_body_lacks_move_to_the_nearest(body, head, sources):
    """FLAME's and SMPL-X's faces need not be the same."""
    face, bary = int(sources.full[0][0][30]), sources.full[1][0][30]
    a, b, c = head.faces[face]

    def placed(corners) -> tuple[FaceFinder, np.ndarray]:
        faces = head.faces.copy()
        faces[face] = corners
        finder = FaceFinder(body, replace(head, faces=faces), sources.flame_ids)
        table = finder.embedding(np.array([face]), bary[None], torch.ones(1))
        at = body.v_template[body.faces[table.faces[0]]]
        return finder, (at * table.barycentrics[0].numpy()[:, None]).sum(0)

    def wanted(corners) -> np.ndarray:
        return bary @ body.v_template[sources.flame_ids[list(corners)]]

    for corners in ((a, b, c), (a, c, b), (b, c, a)):  # the same vertices in any order
        finder, point = placed(corners)
        assert finder.moved == 0 and np.allclose(point, wanted(corners), atol=1e-6)
    shared = [f for f in head.faces.tolist() if len({a, b} & set(f)) == 2 and c not in f]
    other = next(v for v in shared[0] if v not in (a, b))
    finder, point = placed((a, other, c))  # a face that SMPL-X does not have
    assert finder.moved == 1 and np.linalg.norm(point - wanted((a, other, c))) < 0.003


def test_nearest_barycentrics_against_a_dense_search():
    g = np.random.default_rng(0)
    corners, points = g.normal(size=(20, 3, 3)), g.normal(size=(6, 3))
    steps = np.linspace(0, 1, 101)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-9])
    for p in points:
        bary = nearest_barycentrics(p, corners)
        assert np.allclose(bary.sum(1), 1) and bary.min() > -1e-9
        mine = np.linalg.norm((bary[..., None] * corners).sum(1) - p, axis=1)
        best = np.linalg.norm(np.einsum("gk,fkc->fgc", grid, corners) - p, axis=2).min(1)
        assert (mine <= best + 1e-9).all() and np.abs(mine - best).max() < 0.05


# --- teeth ---


def test_teeth_geometry_by_hand(sources, template):
    v = sources.flame.v_template.astype(float)
    up, low = v[list(teeth.UPPER_LIP)], v[list(teeth.LOWER_LIP)]
    d = sum(np.linalg.norm(up[k] - low[k]) for k in range(15)) / 15
    mean_y = sum((up[k, 1] + low[k, 1]) / 2 for k in range(15)) / 15
    shapes = sources.flame.shapedirs
    for k in range(15):
        m = np.array([(up[k, 0] + low[k, 0]) / 2, mean_y, (up[k, 2] + low[k, 2]) / 2 - 1.5 * d])
        expected = {
            0: (0, 2.1, 0), 15: (0, -2.1, -0.4), 30: (0, 0.1, 0), 45: (0, -0.1, -0.4),
            60: (0, 2.1, -1), 75: (0, 0.1, -1), 90: (0, -2.1, -1.4), 105: (0, -0.1, -1.4),
        }  # fmt: skip
        for group, step in expected.items():
            tooth = template.head.v_template[5023 + group + k].numpy()
            assert np.abs(tooth - (m + d * np.array(step))).max() < 1e-6
            mean = (shapes[teeth.UPPER_LIP[k]] + shapes[teeth.LOWER_LIP[k]])[..., :300] / 2
            assert np.abs(template.head.shape_dirs[5023 + group + k].numpy() - mean).max() < 1e-7
    for group in (0, 30, 60, 75):
        assert template.head.weights[5023 + group : 5023 + group + 15, 1].eq(1).all()
        assert template.body.weights[10475 + group : 10475 + group + 15, 12].eq(1).all()
    for group in (15, 45, 90, 105):
        assert template.head.weights[5023 + group : 5023 + group + 15, 2].eq(1).all()
        assert template.body.weights[10475 + group : 10475 + group + 15, 22].eq(1).all()
    for model, first in ((template.body, 10475), (template.head, 5023)):
        assert not model.expression_dirs[first:].any() and not model.pose_dirs[first:].any()
        assert not model.joint_regressor[:, first:].any()
    assert not template.eyelid_dirs[5023:].any()


def test_the_bodys_own_teeth(sources, template):
    v, ids = sources.smplx.v_template.astype(float), sources.flame_ids
    up, low = v[ids[list(teeth.UPPER_LIP)]], v[ids[list(teeth.LOWER_LIP)]]
    d = np.linalg.norm(up - low, axis=1).mean()
    middle = (up + low) / 2
    middle[:, 1] = middle[:, 1].mean()
    middle[:, 2] -= 1.5 * d
    steps = {0: (2.25, 0.4), 15: (-2.2, 0.2), 30: (0.25, 0.4), 45: (-0.2, 0.2)}
    steps |= {60: (2.25, -0.35), 75: (0.25, -0.35), 90: (-2.2, -0.55), 105: (-0.2, -0.55)}
    for group, (y, z) in steps.items():
        mine = template.body.v_template[10475 + group : 10475 + group + 15].numpy()
        assert np.abs(mine - (middle + d * np.array([0, y, z]))).max() < 1e-6


def test_where_the_heads_teeth_land(template):
    """[Q] The release's scrambled order, group by group, and the natural one."""
    landed = {0: 0, 15: 30, 30: 60, 45: 75, 60: 15, 75: 45, 90: 90, 105: 105}
    for group, slot in landed.items():
        ids = template.head_vertex_ids[5023 + group : 5023 + group + 15]
        assert ids.tolist() == list(range(10475 + slot, 10475 + slot + 15))
    assert teeth.slots("natural").tolist() == list(range(120))
    with pytest.raises(ValueError, match="scrambled"):
        teeth.slots("mixed")


def test_natural_teeth_are_rows_that_stay_in_the_head(body, head, files):
    natural = convert(body, head, read_tables(files / "tables"), NATURAL_TEETH)
    v = canonical_vertices(natural)[10475:]
    root, edge = v[teeth.UPPER_ROOT : teeth.UPPER_ROOT + 15], v[teeth.UPPER_EDGE : teeth.UPPER_EDGE + 15]
    assert (root[:, 1] > edge[:, 1]).all() and torch.allclose(root[:, [0, 2]], edge[:, [0, 2]], atol=1e-5)
    # The front faces look forwards, and to the left of the mouth comes its left.
    faces = torch.from_numpy(teeth.faces()[:28])
    a, b, c = v[faces].unbind(1)
    assert (torch.linalg.cross(b - a, c - a)[:, 2] > 0).all()
    assert natural.provenance["options"] == {"teeth_order": "natural", "upper_teeth_joint": "head"}
    pose = Pose.rest(natural)
    pose.joints[0, natural.joint("head"), 1] = 0.6
    with torch.no_grad():
        turned = EHM(natural)(Identity.neutral(natural), pose)
    moved = turned.joint_transforms[0, natural.joint("head")]
    expected = v[: teeth.GROUP] @ moved[:3, :3].T + moved[:3, 3]
    assert torch.allclose(turned.vertices[0, 10475 : 10475 + teeth.GROUP], expected, atol=1e-5)


def test_teeth_faces_and_uv():
    f = teeth.faces()
    assert f.shape == (168, 3) and f.min() == 0 and f.max() == 119
    assert set(np.unique(f[:84])) == {*range(0, 15), *range(30, 45), *range(60, 90)}
    assert set(np.unique(f[84:])) == {*range(15, 30), *range(45, 60), *range(90, 120)}
    # First and last steps of the six strips, as the description lists them.
    assert f[:2].tolist() == [[0, 31, 30], [0, 1, 31]] and f[26:28].tolist() == [[13, 14, 43], [14, 44, 43]]
    assert f[28:30].tolist() == [[60, 75, 76], [60, 76, 61]] and f[54:56].tolist() == [
        [73, 88, 74],
        [74, 88, 89],
    ]
    assert f[56:58].tolist() == [[75, 30, 76], [76, 30, 31]] and f[82:84].tolist() == [
        [88, 43, 44],
        [88, 44, 89],
    ]
    assert f[84:86].tolist() == [[45, 46, 15], [46, 16, 15]] and f[110:112].tolist() == [
        [58, 29, 28],
        [58, 59, 29],
    ]
    assert f[112:114].tolist() == [[90, 106, 105], [90, 91, 106]]
    assert f[138:140].tolist() == [[103, 104, 118], [104, 119, 118]]
    assert f[140:142].tolist() == [[105, 106, 45], [106, 46, 45]]
    assert f[166:168].tolist() == [[118, 59, 58], [118, 119, 59]]
    uv = teeth.uv()
    assert np.allclose(uv[[0, 14], 0], [0.1328, 0.2695])
    steps = np.linspace(0.94726, 0.9999, 7)
    assert np.allclose(uv[::15, 1], steps[[3, 2, 0, 1, 3, 4, 6, 5]])


# --- texels ---


def test_teeth_have_the_releases_number_of_texels():
    """The one number of the release's table that can be checked without the owners' UV layout."""
    table, _ = uv_table(teeth.uv(), teeth.faces())
    assert (table >= 0).sum() == 1917


def test_texels_against_opencv():
    cv2 = pytest.importorskip("cv2")
    g = np.random.default_rng(0)
    uv = np.concatenate([g.random((300, 2)), 0.5 + 0.02 * g.standard_normal((300, 2))]).clip(0, 0.98)
    faces = np.concatenate([g.integers(0, 300, (150, 3)), g.integers(300, 600, (400, 3))])
    table, _ = uv_table(uv, faces, 256)
    expected = np.full((256, 256), -1, np.int32)
    for i, corners in enumerate(np.rint(uv * 256).astype(np.int32)[faces]):
        cv2.drawContours(expected, [corners[:, None]], 0, i, -1)
    assert np.array_equal(table, expected)
    polygons = np.full((256, 256), -1, np.int32)
    for i, corners in enumerate(np.rint(uv * 256).astype(np.int32)[faces]):
        cv2.fillPoly(polygons, [corners], i)
    assert np.array_equal(table, polygons)


def test_texels_against_brute_force():
    """Every texel strictly inside is filled, none farther than half a texel off, and the last face wins."""
    g = np.random.default_rng(1)
    uv, faces = g.random((30, 2)) * 0.95, g.integers(0, 30, (12, 3))
    size = 48
    table, barycentrics = uv_table(uv, faces, size)
    corners = np.rint(uv * size)[faces]
    last_inside = np.full((size, size), -1)
    for row in range(size):
        for column in range(size):
            p = np.array([column, row], float)
            for i, c in enumerate(corners):
                side = [cross(c[(k + 1) % 3] - c[k], p - c[k]) for k in range(3)]
                if min(side) > 0 or max(side) < 0:
                    last_inside[row, column] = i
            owner = table[row, column]
            assert owner >= last_inside[row, column]
            if owner < 0:
                assert not barycentrics[row, column].any()
                continue
            c = corners[owner]
            areas = [0.5 * abs(cross(p - c[(k + 1) % 3], p - c[(k + 2) % 3])) for k in range(3)]
            assert np.allclose(barycentrics[row, column], np.array(areas) / (sum(areas) + 1e-6), atol=1e-6)
            if owner != last_inside[row, column]:  # on the outline
                distance = np.linalg.norm(nearest_2d(p, c) - p)
                assert distance <= 0.5 + 1e-9


def cross(a, b) -> float:
    return a[0] * b[1] - a[1] * b[0]


def nearest_2d(p, corners):
    flat = np.concatenate([corners, np.zeros((3, 1))], 1)[None]
    bary = nearest_barycentrics(np.append(p, 0.0), flat)[0]
    return bary @ corners


def test_corners_are_rounded_to_even_and_collapsed_faces_have_no_weights():
    half = np.array([[0.5, 0.5], [1.5, 2.5], [10.5, 3.5]]) / 16
    table, _ = uv_table(half, np.array([[0, 1, 2]]), 16)
    assert table[0, 0] == 0 and table[2, 2] == 0 and table[4, 10] == 0 and table[1, 1] == 0
    dot = np.array([[4.1, 4.2], [4.2, 4.1], [3.9, 4.0]]) / 16
    table, barycentrics = uv_table(dot, np.array([[0, 1, 2]]), 16)
    assert (table >= 0).sum() == 1 and table[4, 4] == 0 and not barycentrics.any()


def test_the_templates_texels_lie_on_their_faces(template):
    ids, bary = template.uv_table.face_ids, template.uv_table.barycentrics
    valid = ids >= 0
    assert int(valid.sum()) == template.provenance["texels"]["valid"] > 100_000
    corners = template.uv[template.uv_faces[ids[valid]]] * 512
    at = (corners * bary[valid][..., None]).sum(1)
    rows, columns = valid.nonzero(as_tuple=True)
    off = (at - torch.stack([columns, rows], 1)).norm(dim=1)
    assert (off < 1.2).float().mean() > 0.95  # all but the outlines of faces thinner than a texel
    assert (ids[valid] >= 20908).sum() == 1917  # teeth are drawn last


# --- EHM, by the description of the release (each step), vertex by vertex ---


def rotation(r: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(r + 1e-8)
    x, y, z = r / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def relative_transforms(rotations, joints, parents):
    world = []
    for j, parent in enumerate(parents):
        step = np.eye(4)
        step[:3, :3] = rotations[j]
        step[:3, 3] = joints[j] if parent < 0 else joints[j] - joints[parent]
        world.append(step if parent < 0 else world[parent] @ step)
    out = []
    for w, joint in zip(world, joints, strict=True):
        relative = w.copy()
        relative[:3, 3] = w[:3, 3] - w[:3, :3] @ joint
        out.append(relative)
    return np.array(out), np.array([w[:3, 3] for w in world])


def with_teeth(model, points, dirs, weights):
    """The owner's arrays in float64 with 120 rows more."""
    out = {
        n: getattr(model, n).astype(float)
        for n in ("v_template", "shapedirs", "posedirs", "weights", "J_regressor")
    }
    out["v_template"] = np.concatenate([out["v_template"], points])
    out["shapedirs"] = out["shapedirs"][..., :350]
    dirs = np.concatenate([dirs, np.zeros((120, 3, 50))], -1)
    out["shapedirs"] = np.concatenate([out["shapedirs"], dirs])
    out["posedirs"] = np.concatenate([out["posedirs"], np.zeros((120, 3, out["posedirs"].shape[-1]))])
    out["weights"] = np.concatenate([out["weights"], weights])
    out["J_regressor"] = np.concatenate([out["J_regressor"], np.zeros((len(out["J_regressor"]), 120))], 1)
    out["parents"] = [-1, *model.kintree_table[0, 1:].tolist()]
    return out


def release_ehm(s, p: dict[str, np.ndarray]):
    """Posed vertices, posed joints, rest joints and blended transforms of one person."""
    lips = [list(teeth.UPPER_LIP), list(teeth.LOWER_LIP)]
    body_lips = [s.flame_ids[ids] for ids in lips]

    def mean_dirs(dirs, ids):
        return np.tile((dirs[ids[0]] + dirs[ids[1]])[..., :300] / 2, (8, 1, 1))

    def tooth_weights(joints, neck, jaw):
        w = np.zeros((120, joints))
        for first in range(0, 120, 15):
            w[first : first + 15, neck if first in (0, 30, 60, 75) else jaw] = 1
        return w

    head = with_teeth(
        s.flame,
        teeth.head_vertices(s.flame.v_template),
        mean_dirs(s.flame.shapedirs, lips),
        tooth_weights(5, 1, 2),
    )
    body = with_teeth(
        s.smplx,
        teeth.body_vertices(s.smplx.v_template, s.flame_ids),
        mean_dirs(s.smplx.shapedirs, body_lips),
        tooth_weights(55, 12, 22),
    )
    # 1, 2: the head at rest but for jaw and eyes; lids after skinning
    shaped = head["v_template"] + head["shapedirs"] @ np.concatenate([p["head_shape"], p["expression"]])
    joints = head["J_regressor"] @ shaped
    zero = np.zeros(3)
    turns = [rotation(r) for r in (zero, zero, p["jaw"], p["left_eye"], p["right_eye"])]
    feature = np.concatenate([(r - np.eye(3)).ravel() for r in turns[1:]])
    relative, posed_joints = relative_transforms(turns, joints, head["parents"])
    posed = np.zeros_like(shaped)
    lids = [np.concatenate([lid, np.zeros((120, 3))]) for lid in s.eyelids]
    for v in range(len(shaped)):
        corrected = shaped[v] + head["posedirs"][v] @ feature
        for j in range(5):
            posed[v] += head["weights"][v, j] * (relative[j] @ np.append(corrected, 1))[:3]
        posed[v] += lids[0][v] * p["lids"][0] + lids[1][v] * p["lids"][1]
        posed[v] *= p["head_scale"]  # 3
    # 4
    rest = body["v_template"] + body["shapedirs"] @ np.concatenate([p["body_shape"], p["body_expression"]])
    body_joints = body["J_regressor"] @ rest + p["offsets"]
    # 5, 6
    posed += (body_joints[23] + body_joints[24]) / 2 - (posed_joints[3] + posed_joints[4]) / 2
    order = [10475 + first + i for first in (0, 30, 60, 75, 15, 45, 90, 105) for i in range(15)]
    for i, target in enumerate([*s.flame_ids.tolist(), *order]):
        rest[target] = posed[i]
    # 7
    for ids in s.hands:
        centre = np.mean([s.smplx.v_template[v].astype(float) for v in ids], axis=0)
        for v in ids:
            rest[v] = rest[v] * p["hand_scale"] + (1 - p["hand_scale"]) * centre
    # 8
    joints = body["J_regressor"] @ rest + p["offsets"]
    turns = [rotation(zero if j in (22, 23, 24) else p["joints"][j]) for j in range(55)]
    feature = np.concatenate([(r - np.eye(3)).ravel() for r in turns[1:]])
    relative, posed_joints = relative_transforms(turns, joints, body["parents"])
    out, blended = np.zeros_like(rest), np.zeros((len(rest), 4, 4))
    for v in range(len(rest)):
        for j in np.nonzero(body["weights"][v])[0]:
            blended[v] += body["weights"][v, j] * relative[j]
        out[v] = (blended[v] @ np.append(rest[v] + body["posedirs"][v] @ feature, 1))[:3]
    return out, posed_joints, joints, blended


@pytest.fixture(scope="module")
def person():
    g = np.random.default_rng(7)
    values = {
        "body_shape": g.normal(size=300),
        "head_shape": g.normal(size=300),
        "expression": g.normal(size=50),
        "body_expression": g.normal(size=50),
        "joints": g.normal(0, 0.4, (55, 3)),
        "lids": np.array([0.9, -0.3]),
        "offsets": g.normal(0, 0.01, (55, 3)),
        "head_scale": np.array([1.1, 0.95, 1.05]),
        "hand_scale": np.array([0.9, 1.15, 1.05]),
    }
    values |= {
        "jaw": values["joints"][22],
        "left_eye": values["joints"][23],
        "right_eye": values["joints"][24],
    }

    def tensor(name):
        return torch.from_numpy(values[name])[None].float()

    identity = Identity(
        *(tensor(n) for n in ("body_shape", "head_shape", "offsets", "head_scale", "hand_scale"))
    )
    pose = Pose(
        tensor("joints"), tensor("expression"), tensor("body_expression"), tensor("lids"), torch.zeros(1, 3)
    )
    return values, identity, pose


def test_ehm_is_the_releases(sources, template, person):
    values, identity, pose = person
    vertices, joints, rest_joints, blended = release_ehm(sources, values)
    with torch.no_grad():
        out = EHM(template)(identity, pose)
    for mine, expected in (
        (out.vertices, vertices),
        (out.joints, joints),
        (out.rest_joints, rest_joints),
        (out.transforms, blended),
    ):
        assert np.abs(mine[0].numpy() - expected).max() < 1e-5
    # The order of the lids is left, right.
    assert np.abs(values["lids"][0] - values["lids"][1]) > 1


def test_vertex_subsets_and_folded_identities_agree(template, person):
    from guava.avatar.animate import with_identity

    _, identity, pose = person
    ids = torch.tensor(
        [0, 4600, 7400, 9500, 10475, 10594, *template.head_vertex_ids[[5, 2000, 5100]].tolist()]
    )
    with torch.no_grad():
        whole = EHM(template)(identity, pose)
        part = EHM(template, ids)(identity, pose)
        folded, left = with_identity(template, identity)
        same = EHM(folded)(left, pose)
    assert torch.allclose(part.vertices, whole.vertices[:, ids], atol=2e-6)
    assert torch.allclose(part.joints, whole.joints, atol=2e-6)
    assert torch.allclose(same.vertices, whole.vertices, atol=1e-5)
    assert torch.allclose(same.joints, whole.joints, atol=1e-5)


def test_canonical_template(sources, template):
    """The neutral body with FLAME's neutral head, eyes on eyes."""
    expected = template.body.v_template.numpy().astype(float).copy()
    eyes = (sources.smplx.J_regressor @ sources.smplx.v_template)[[23, 24]].mean(0)
    head_eyes = (sources.flame.J_regressor @ sources.flame.v_template)[[3, 4]].mean(0)
    expected[template.head_vertex_ids] = template.head.v_template.numpy() - head_eyes + eyes
    assert np.abs(canonical_vertices(template).numpy() - expected).max() < 1e-6
    with torch.no_grad():
        rest, _ = EHM(template).rest(Identity.neutral(template), Pose.rest(template))
    assert torch.allclose(rest[0], canonical_vertices(template), atol=1e-5)
    assert torch.equal(canonical_vertices(plain_head(template)), template.body.v_template)


def test_plain_head_of_smplx(template):
    """The ablation: SMPL-X's own head, with its expression and its jaw."""
    plain = plain_head(template)
    neutral, pose = Identity.neutral(plain), Pose.rest(plain)
    model = EHM(plain)
    with torch.no_grad():
        rest = model(neutral, pose).vertices[0]
        assert torch.allclose(rest, plain.body.v_template, atol=1e-6)
        smile = replace(pose, body_expression=torch.eye(50)[:1])
        assert torch.allclose(
            model.rest(neutral, smile)[0][0], rest + plain.body.expression_dirs[..., 0], atol=1e-6
        )
        joints = pose.joints.clone()
        joints[0, 22, 0] = 0.3
        moved = (model(neutral, replace(pose, joints=joints)).vertices[0] - rest).norm(dim=1)
    chin = plain.surface_points["chin"]
    assert moved[chin] > 0.01 and moved[plain.surface_points["left_index_tip"]] < 1e-5


# --- files and the data folder ---


def test_the_template_file_loses_nothing(template, tmp_path):
    digest = save_template(template, tmp_path / "a.template", exact=True)
    again = read_template(tmp_path / "a.template")
    assert again.hash == digest == template.hash
    for model in ("body", "head"):
        a, b = getattr(template, model), getattr(again, model)
        for name in (
            "v_template",
            "shape_dirs",
            "expression_dirs",
            "pose_dirs",
            "weights",
            "joint_regressor",
        ):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(template.uv_table.face_ids, again.uv_table.face_ids)
    assert torch.equal(template.uv_table.barycentrics, again.uv_table.barycentrics)
    assert again.provenance == template.provenance and again.surface_points == template.surface_points
    with pytest.raises(ValueError, match="plain"):
        save_template(plain_head(template), tmp_path / "b.template", exact=True)


def test_adding_files_makes_the_template(files, template, home, capsys):
    with pytest.raises(MissingAssetError) as error:
        load_template("smplx-flame")
    for name in (
        "SMPLX_NEUTRAL",
        "generic_model.pkl",
        "l_eyelid.npy",
        "smplx_uv.obj",
        "landmark_embedding.npy",
        "mediapipe_landmark_embedding.npz",
        "SMPL-X__FLAME_vertex_ids.npy",
        "MANO_SMPLX_vertex_ids.pkl",
        "smpl-x.is.tue.mpg.de",
        "flame.is.tue.mpg.de",
        "guava assets add tables",
    ):
        assert name in str(error.value)
    assert main(["assets", "add", "smplx", str(files / "smplx")]) == 0
    text = capsys.readouterr().out
    assert "SMPLX_NEUTRAL.npz" in text and "generic_model.pkl" in text and "licence" in text
    assert main(["assets", "add", "tables", str(files / "tables")]) == 0
    capsys.readouterr()
    with pytest.raises(MissingAssetError) as error:
        load_template("smplx-flame-plain-head")
    assert "generic_model.pkl" in str(error.value) and "SMPLX_NEUTRAL" not in str(error.value)
    assert main(["assets", "add", "flame", str(files / "flame" / "generic_model.pkl")]) == 0
    text = capsys.readouterr()
    assert "made the template smplx-flame" in text.out and "199,008" in text.err
    made = load_template("smplx-flame")
    assert made is load_template("smplx-flame") and made.hash == template.hash
    assert load_template("smplx-flame-plain-head").name == "smplx-flame-plain-head"
    assert main(["assets"]) == 0
    text = capsys.readouterr().out
    assert "10,595 vertices" in text and "SMPLX_NEUTRAL.npz" in text and "missing" not in text

    # A lost template is made again, here with other teeth; a removed part leaves none.
    store.choose_teeth("natural", build=False)
    assert not store.template_path().exists() and store.chosen_teeth() == "natural"
    assert load_template("smplx-flame").hash != template.hash
    assert main(["assets", "remove", "flame"]) == 0
    assert not store.template_path().exists()
    with pytest.raises(MissingAssetError):
        load_template("smplx-flame")
    assert main(["assets", "remove", "smplx-flame"]) == 0
    assert not list((home / "models").iterdir()) and store.chosen_teeth() == "release"
    capsys.readouterr()
    assert main(["assets", "remove", "smplx"]) == 2 and "not there" in capsys.readouterr().err


def test_a_failed_addition_changes_nothing(files, home, tmp_path, sources):
    store.add_model("flame", files / "flame", build=False)
    before = (home / "models" / "flame.asset").read_bytes()
    write_flame(tmp_path / "generic_model.pkl", sources, weights=None)
    with pytest.raises(FileFormatError):
        store.add_model("flame", tmp_path)
    assert (home / "models" / "flame.asset").read_bytes() == before
    write_flame(tmp_path / "generic_model.pkl", sources, v_template=sources.flame.v_template + 0.001)
    store.add_model("flame", tmp_path, build=False)
    assert (home / "models" / "flame.asset").read_bytes() != before
    # A damaged part counts as missing.
    (home / "models" / "flame.asset").write_bytes(before[:1000])
    assert "flame" in {item.name for item in store.missing()}


def test_a_uv_layout_of_another_mesh_is_refused(body, head, files):
    other = replace(body, faces=np.roll(body.faces, 1, 0))
    with pytest.raises(FileFormatError, match="UV layout"):
        convert(other, head, read_tables(files / "tables"))


def test_the_embedded_template_is_untouched():
    assert load_template().hash == "2e4192b56b8a9afac90828975c97fc9d1e39cda3cf78215aef0963202e79dab1"
    assert load_template().uv_table is None and load_template().expressive_head
