"""Edge collapses that leave a subset of a mesh's vertices, for the synthetic body models of the tests."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np


class Remesh:
    """A closed triangle mesh with a UV atlas that is thinned out one half-edge collapse (a -> b) at a time.

    Vertices never move, so whatever belongs to a vertex (weights, directions) stays valid. An edge is only
    collapsed where mesh and atlas stay manifold and nothing turns over.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        uv: (T, 2).
        uv_faces: (F, 3).
        worth: (V,) factor on the cost of giving a vertex up.
    """

    def __init__(self, vertices, faces, uv, uv_faces, worth):
        self.v = [tuple(p) for p in vertices.astype(float)]
        self.uv = [tuple(p) for p in uv.astype(float)]
        self.faces = {i: list(f) for i, f in enumerate(faces.tolist())}
        self.uv_faces = {i: list(f) for i, f in enumerate(uv_faces.tolist())}
        self.worth = worth.tolist()
        self.of = defaultdict(set)
        for i, f in self.faces.items():
            for a in f:
                self.of[a].add(i)
        corners = vertices[faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(normal, axis=1).clip(1e-12)
        plane = np.concatenate([normal / area[:, None], np.zeros((len(faces), 1))], 1)
        plane[:, 3] = -(plane[:, :3] * corners[:, 0]).sum(1)
        quadric = np.einsum("f,fi,fj->fij", area, plane, plane)
        total, size = np.zeros((len(vertices), 4, 4)), np.zeros(len(vertices))
        for k in range(3):
            np.add.at(total, faces[:, k], quadric)
            np.add.at(size, faces[:, k], area)
        upper = np.triu_indices(4)
        self.quadric = [q[upper].tolist() for q in total]
        self.size = size.tolist()

    def neighbours(self, a):
        return {b for f in self.of[a] for b in self.faces[f]} - {a}

    def cost(self, a, b):
        x, y, z = self.v[b]
        q = self.quadric[a]
        error = (
            q[0] * x * x + q[4] * y * y + q[7] * z * z + q[9]
            + 2 * (q[1] * x * y + q[2] * x * z + q[5] * y * z + q[3] * x + q[6] * y + q[8] * z)
        )
        length = sum((s - t) ** 2 for s, t in zip(self.v[a], self.v[b], strict=True))
        return (max(error, 0.0) + 0.02 * self.size[a] * length) * self.worth[a]

    @staticmethod
    def _normal(p, q, r):
        ax, ay, az = q[0] - p[0], q[1] - p[1], q[2] - p[2]
        bx, by, bz = r[0] - p[0], r[1] - p[1], r[2] - p[2]
        return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx

    @staticmethod
    def _area(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    def plan(self, a, b):
        """How the UV corners of ``a`` become ``b``'s, or None where the collapse is not allowed."""
        shared = self.of[a] & self.of[b]
        if len(shared) != 2:
            return None
        common = self.neighbours(a) & self.neighbours(b)
        if len(common) != 2 or any(len(self.of[c]) <= 3 for c in common):
            return None
        become = {}
        for f in shared:
            face, corner = self.faces[f], self.uv_faces[f]
            become[corner[face.index(a)]] = corner[face.index(b)]
        for f in self.of[a] - shared:
            face, corner = self.faces[f], self.uv_faces[f]
            k = face.index(a)
            if corner[k] not in become:
                return None
            old = [self.v[i] for i in face]
            new = list(old)
            new[k] = self.v[b]
            n, m = self._normal(*old), self._normal(*new)
            nn, mm = sum(t * t for t in n), sum(t * t for t in m)
            along = sum(s * t for s, t in zip(n, m, strict=True))
            if along <= 0.2 * (nn * mm) ** 0.5 or mm < 1e-16:
                return None
            old2 = [self.uv[i] for i in corner]
            new2 = list(old2)
            new2[k] = self.uv[become[corner[k]]]
            before, after = self._area(*old2), self._area(*new2)
            if before * after <= 0 or abs(after) < 1e-8:
                return None
        return shared, become

    def thin(self, region: set[int], count: int) -> set[int]:
        """Collapse vertices of ``region`` into each other until ``count`` of them are left; returns those."""
        left = set(region)
        heap = [
            (self.cost(a, b), a, b) for a in sorted(region) for b in sorted(self.neighbours(a)) if b in region
        ]
        heapq.heapify(heap)
        while len(left) > count:
            if not heap:
                raise AssertionError(f"only {len(left)} of {count} vertices were reached")
            cost, a, b = heapq.heappop(heap)
            if a not in left or b not in left or b not in self.neighbours(a):
                continue
            now = self.cost(a, b)
            if now > cost * (1 + 1e-9):
                heapq.heappush(heap, (now, a, b))
                continue
            plan = self.plan(a, b)
            if plan is None:
                continue
            shared, become = plan
            for f in shared:
                for i in self.faces.pop(f):
                    self.of[i].discard(f)
                self.uv_faces.pop(f)
            for f in self.of.pop(a):
                k = self.faces[f].index(a)
                self.faces[f][k] = b
                self.uv_faces[f][k] = become[self.uv_faces[f][k]]
                self.of[b].add(f)
            self.quadric[b] = [s + t for s, t in zip(self.quadric[a], self.quadric[b], strict=True)]
            self.size[b] += self.size[a]
            left.discard(a)
            for c in sorted(self.neighbours(b) | {b}):
                if c in left:
                    for d in sorted(self.neighbours(c)):
                        if d in left and (c == b or d == b or c in self.neighbours(b)):
                            heapq.heappush(heap, (self.cost(c, d), c, d))
        return left

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Faces (F, 3) and UV faces (F, 3), in the old numbering."""
        keys = sorted(self.faces)
        return np.array([self.faces[k] for k in keys]), np.array([self.uv_faces[k] for k in keys])
