// Linear blend skinning and Eq. 3 of the paper: how vertices and Gaussians follow the body.
//
// One vertex or Gaussian at a time, in vectors of four: what each needs (a triangle, some joints) lies
// somewhere else, and gathering it into wide vectors would cost more than the arithmetic.
#include "pose_kernels.h"
#include "simd.h"

namespace guava {
namespace GUAVA_ISA {
namespace {

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef float v4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));

constexpr float kTiny = 1e-10f; // metres; no length is smaller, so that triangles without area divide by it
constexpr int64_t kAhead = 12; // Gaussians: what lies at random in memory is asked for so far ahead
constexpr int kTriangle = 0, kVertex = 1, kSkin = 2; // guava.avatar.BindingKind

GUAVA_INLINE v4 load4(const float *p) { return *reinterpret_cast<const v4_unaligned *>(p); }
GUAVA_INLINE v4 load3(const float *p) { return v4{p[0], p[1], p[2], 0}; }
GUAVA_INLINE void store4(float *p, v4 x) { *reinterpret_cast<v4_unaligned *>(p) = x; }
GUAVA_INLINE void store3(float *p, v4 x) {
    p[0] = x[0];
    p[1] = x[1];
    p[2] = x[2];
}
GUAVA_INLINE float sum3(v4 x) { return x[0] + x[1] + x[2]; }
GUAVA_INLINE float sum4(v4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }
GUAVA_INLINE float root(float x) { return __builtin_sqrtf(x); }
GUAVA_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
GUAVA_INLINE float length(v4 x) {
    float found = root(sum3(x * x));
    return found > kTiny ? found : kTiny;
}
GUAVA_INLINE v4 cross(v4 a, v4 b) {
    v4 a_yzx = __builtin_shufflevector(a, a, 1, 2, 0, 3), b_yzx = __builtin_shufflevector(b, b, 1, 2, 0, 3);
    v4 c = a * b_yzx - a_yzx * b;
    return __builtin_shufflevector(c, c, 1, 2, 0, 3);
}

// Quaternions are (w, x, y, z).
GUAVA_INLINE v4 product(v4 a, v4 b) {
    v4 x = __builtin_shufflevector(b, b, 1, 0, 3, 2) * v4{-1, 1, -1, 1};
    v4 y = __builtin_shufflevector(b, b, 2, 3, 0, 1) * v4{-1, 1, 1, -1};
    v4 z = __builtin_shufflevector(b, b, 3, 2, 1, 0) * v4{-1, -1, 1, 1};
    return a[0] * b + a[1] * x + a[2] * y + a[3] * z;
}
GUAVA_INLINE v4 conjugate(v4 q) { return q * v4{1, -1, -1, -1}; }

// guava.rotation.matrix_to_quaternion of a matrix given by rows, not normalised; ties go to the same
// candidate.
GUAVA_INLINE v4 quaternion(v4 r0, v4 r1, v4 r2) {
    float m00 = r0[0], m11 = r1[1], m22 = r2[2], trace = m00 + m11 + m22;
    float x = r2[1] - r1[2], y = r0[2] - r2[0], z = r1[0] - r0[1];
    float xy = r1[0] + r0[1], xz = r0[2] + r2[0], yz = r2[1] + r1[2];
    if (trace > m00 && trace > m11 && trace > m22) return v4{1 + trace, x, y, z};
    if (m00 >= m11 && m00 >= m22) return v4{x, 1 - trace + 2 * m00, xy, xz};
    if (m11 >= m22) return v4{y, xy, 1 - trace + 2 * m11, yz};
    return v4{z, xz, yz, 1 - trace + 2 * m22};
}

// Rows of a 4 x 4 matrix.
struct Transform {
    v4 rows[4];
};

// By columns: sums of products across a vector would cost more than turning the matrix over.
GUAVA_INLINE v4 apply(const Transform &t, const float *point) {
    v4 a = __builtin_shufflevector(t.rows[0], t.rows[1], 0, 4, 1, 5);
    v4 b = __builtin_shufflevector(t.rows[0], t.rows[1], 2, 6, 3, 7);
    v4 c = __builtin_shufflevector(t.rows[2], t.rows[2], 0, 0, 1, 1);
    v4 d = __builtin_shufflevector(t.rows[2], t.rows[2], 2, 2, 3, 3);
    return point[0] * __builtin_shufflevector(a, c, 0, 1, 4, 5)
        + point[1] * __builtin_shufflevector(a, c, 2, 3, 6, 7)
        + point[2] * __builtin_shufflevector(b, d, 0, 1, 4, 5) + __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

// Sum of the joints' transforms times their weights. Zero weights are multiplied out like others: where they
// begin differs from one row to the next, and guessing that wrong costs more.
GUAVA_INLINE bool blend(
    Transform &out, const float *transforms, int32_t joints, const uint8_t *indices, const float *weights,
    int32_t count
) {
    out = Transform{};
    if (joints == 0) return count == 0;
    bool fits = true;
    for (int32_t k = 0; k < count; ++k) {
        const bool known = indices[k] < joints;
        fits &= known;
        const float *m = transforms + (known ? 16 * indices[k] : 0);
        for (int r = 0; r < 4; ++r) out.rows[r] += weights[k] * load4(m + 4 * r);
    }
    return fits;
}

bool skin(const guava_body *body, const guava_body_pose *out, int64_t begin, int64_t end) {
    bool fits = true;
    for (int64_t v = begin; v < end; ++v) {
        Transform t;
        int64_t k = v * body->influences;
        fits &= blend(
            t, out->joint_transforms, body->joints, body->indices + k, body->weights + k, body->influences
        );
        for (int r = 0; r < 4; ++r) store4(out->transforms + 16 * v + 4 * r, t.rows[r]);
        store3(out->vertices + 3 * v, apply(t, body->rest_vertices + 3 * v));
    }
    return fits;
}

bool triangles(const guava_pose_scene *scene, PosedTriangle *out, int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
        const int32_t *corner = scene->triangles + 3 * f;
        for (int i = 0; i < 3; ++i)
            if (corner[i] < 0 || corner[i] >= scene->vertices) return false;
        v4 v0 = load3(scene->mesh + 3 * (int64_t)corner[0]);
        v4 v1 = load3(scene->mesh + 3 * (int64_t)corner[1]);
        v4 v2 = load3(scene->mesh + 3 * (int64_t)corner[2]);
        v4 edge = v1 - v0, side = v2 - v0;
        float edge_length = length(edge), sigma;
        v4 a0 = edge / edge_length;
        // a1 = unit(a0 x side), without waiting for a0; a2 = -unit(a1 x a0), which has length 1 or 0 already.
        v4 normal = cross(edge, side);
        float area = root(sum3(normal * normal)), smallest = kTiny * edge_length;
        v4 a1 = normal / (area > smallest ? area : smallest);
        v4 a2 = cross(a0, a1);
        if (scene->mean_edge)
            sigma = (edge_length + length(side) + length(v2 - v1)) / 3;
        else
            sigma = (edge_length + magnitude(sum3(a2 * side))) / 2;
        PosedTriangle &t = out[f];
        store4(t.corners[0], v0);
        store4(t.corners[1], v1);
        store4(t.corners[2], v2);
        store4(t.frame[0], sigma * a0);
        store4(t.frame[1], sigma * a1);
        store4(t.frame[2], sigma * a2);
        v4 r0 = {a0[0], a1[0], a2[0], 0}, r1 = {a0[1], a1[1], a2[1], 0}, r2 = {a0[2], a1[2], a2[2], 0};
        store4(t.quaternion, quaternion(r0, r1, r2));
        t.sigma = sigma;
    }
    return true;
}

bool gaussians(
    const guava_pose_scene *scene, const PosedTriangle *posed, const guava_posed *out, int64_t begin,
    int64_t end
) {
    const v4 origin = load3(scene->origin);
    bool fits = true;
    for (int64_t n = begin; n < end; ++n) {
        const int kind = scene->binding[n];
        const int32_t anchor = scene->anchor[n];
        if (n + kAhead < end) {
            const int32_t next = scene->anchor[n + kAhead];
            if (next >= 0 && next < scene->faces) {
                __builtin_prefetch(posed[next].corners);
                __builtin_prefetch(posed[next].frame[1]);
            }
        }
        v4 mean, turn;
        float ratio = 1;
        if (kind == kTriangle) {
            if (anchor < 0 || anchor >= scene->faces) {
                fits = false;
                continue;
            }
            const PosedTriangle &t = posed[anchor];
            const float *b = scene->barycentrics + 3 * n, *offset = scene->local_offset + 3 * n;
            // mu' = sigma R_t delta_mu + sum_k b_k v_k, and what the b_k lack of one goes to the origin.
            mean = b[0] * load4(t.corners[0]) + b[1] * load4(t.corners[1]) + b[2] * load4(t.corners[2])
                + (1 - (b[0] + b[1] + b[2])) * origin + offset[0] * load4(t.frame[0])
                + offset[1] * load4(t.frame[1]) + offset[2] * load4(t.frame[2]);
            turn = product(load4(t.quaternion), conjugate(load4(scene->triangle_rotation + 4 * n)));
            ratio = t.sigma / scene->sigma[n];
        } else if (kind == kVertex) {
            if (anchor < 0 || anchor >= scene->vertices) {
                fits = false;
                continue;
            }
            const float *m = scene->transforms + 16 * (int64_t)anchor;
            mean = load3(scene->mesh + 3 * (int64_t)anchor);
            turn = quaternion(load4(m), load4(m + 4), load4(m + 8));
        } else {
            Transform t;
            int64_t k = n * scene->influences;
            bool known = blend(
                t, scene->joint_transforms, scene->joints, scene->skin_indices + k, scene->skin_weights + k,
                scene->influences
            );
            if (kind != kSkin || !known) {
                fits = false;
                continue;
            }
            mean = apply(t, scene->positions + 3 * n);
            turn = quaternion(t.rows[0], t.rows[1], t.rows[2]);
        }
        v4 q = product(turn, load4(scene->rotations + 4 * n));
        float norm = root(sum4(q * q));
        store3(out->means + 3 * n, mean);
        store4(out->quaternions + 4 * n, q / (norm > kTiny ? norm : kTiny));
        store3(out->scales + 3 * n, ratio * load3(scene->scales + 3 * n));
    }
    return fits;
}

} // namespace

extern const PoseKernels pose_kernels;
const PoseKernels pose_kernels = {skin, triangles, gaussians};

} // namespace GUAVA_ISA
} // namespace guava
