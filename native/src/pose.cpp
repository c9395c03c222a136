// Posing the body and the Gaussians that follow it; kernels in pose_isa.cpp.
#include <atomic>
#include <new>

#include "context.h"
#include "isa.h"
#include "pose_kernels.h"

namespace guava {

namespace baseline {
extern const PoseKernels pose_kernels;
}
#if GUAVA_X86
namespace avx2 {
extern const PoseKernels pose_kernels;
}
namespace avx512 {
extern const PoseKernels pose_kernels;
}
#endif

namespace {

constexpr int64_t kVertexGrain = 1024, kTriangleGrain = 1024, kGaussianGrain = 2048;

const PoseKernels &kernels(int32_t isa) {
#if GUAVA_X86
    if (isa == GUAVA_ISA_AVX512) return avx512::pose_kernels;
    if (isa == GUAVA_ISA_AVX2) return avx2::pose_kernels;
#endif
    (void)isa;
    return baseline::pose_kernels;
}

struct PoseWorkspace final : Workspace {
    Buffer<PosedTriangle> triangles;
    size_t bytes() const override { return triangles.bytes(); }
    void clear() override { triangles.clear(); }
};

PoseWorkspace &workspace(Context &context) {
    if (!context.pose) context.pose = new PoseWorkspace;
    return static_cast<PoseWorkspace &>(*context.pose);
}

// Joint transforms, T_j = T_parent(j) L_j down the tree, and where the joints go.
bool kinematics(const guava_body &body, const guava_body_pose &out) {
    double world[GUAVA_MAX_JOINTS][12]; // rows of [R | t]: where the joint is and how it is turned
    for (int32_t j = 0; j < body.joints; ++j) {
        const float *local = body.rotations + 9 * j, *rest = body.rest_joints + 3 * j;
        double *here = world[j];
        if (j == 0) {
            for (int r = 0; r < 3; ++r) {
                for (int c = 0; c < 3; ++c) here[4 * r + c] = local[3 * r + c];
                here[4 * r + 3] = rest[r];
            }
        } else {
            const int32_t parent = body.parents[j];
            if (parent < 0 || parent >= j) return false;
            const double *above = world[parent];
            const float *rest_above = body.rest_joints + 3 * parent;
            for (int r = 0; r < 3; ++r) {
                here[4 * r + 3] = above[4 * r + 3];
                for (int k = 0; k < 3; ++k)
                    here[4 * r + 3] += above[4 * r + k] * (double(rest[k]) - rest_above[k]);
                for (int c = 0; c < 3; ++c) {
                    here[4 * r + c] = 0;
                    for (int k = 0; k < 3; ++k) here[4 * r + c] += above[4 * r + k] * local[3 * k + c];
                }
            }
        }
        float *transform = out.joint_transforms + 16 * j;
        for (int r = 0; r < 3; ++r) {
            double moved = 0; // the joint itself, turned about the origin
            for (int k = 0; k < 3; ++k) {
                transform[4 * r + k] = float(here[4 * r + k]);
                moved += here[4 * r + k] * rest[k];
            }
            transform[4 * r + 3] = float(here[4 * r + 3] - moved + body.translation[r]);
            out.joints[3 * j + r] = float(here[4 * r + 3] + body.translation[r]);
            transform[12 + r] = 0;
        }
        transform[15] = 1;
    }
    return true;
}

bool complete(const guava_body *body, const guava_body_pose *out) {
    if (!body || !out || body->vertices < 0) return false;
    if (body->joints < 1 || body->joints > GUAVA_MAX_JOINTS) return false;
    if (body->influences < 1 || !body->parents || !body->rest_joints || !body->rotations) return false;
    if (!out->joints || !out->joint_transforms) return false;
    return !body->vertices
        || (body->rest_vertices && body->indices && body->weights && out->vertices && out->transforms);
}

bool complete(const guava_pose_scene *scene, const guava_posed *out) {
    if (!scene || !out || scene->count < 0 || scene->count > INT64_MAX / 64) return false;
    if (scene->vertices < 0 || scene->faces < 0 || scene->joints < 0 || scene->influences < 0) return false;
    if (scene->faces && !scene->triangles) return false;
    if (scene->vertices && (!scene->mesh || !scene->transforms)) return false;
    if (scene->joints && !scene->joint_transforms) return false;
    if (!scene->count) return true;
    if (scene->influences && (!scene->skin_weights || !scene->skin_indices)) return false;
    return scene->positions && scene->rotations && scene->scales && scene->barycentrics && scene->local_offset
        && scene->sigma && scene->triangle_rotation && scene->binding && scene->anchor && out->means
        && out->quaternions && out->scales;
}

} // namespace
} // namespace guava

extern "C" {

GUAVA_API int32_t guava_pose_body(
    guava_context *context, const guava_body *body, const guava_body_pose *out
) {
    if (!context || !guava::complete(body, out)) return GUAVA_INVALID_CALL;
    context->begin_call();
    if (!guava::kinematics(*body, *out)) return GUAVA_INVALID_VALUE;
    const guava::PoseKernels &run = guava::kernels(context->isa);
    std::atomic<bool> fits{true};
    bool done = guava::parallel_for(
        *context, body->vertices, guava::kVertexGrain,
        [&](int64_t begin, int64_t end, int) {
            if (!run.skin(body, out, begin, end)) fits.store(false, std::memory_order_relaxed);
        }
    );
    if (!done) return GUAVA_CANCELLED;
    return fits.load() ? GUAVA_OK : GUAVA_INVALID_VALUE;
}

GUAVA_API int32_t guava_pose_gaussians(
    guava_context *context, const guava_pose_scene *scene, const guava_posed *out
) {
    if (!context || !guava::complete(scene, out)) return GUAVA_INVALID_CALL;
    context->begin_call();
    const guava::PoseKernels &run = guava::kernels(context->isa);
    guava::PosedTriangle *posed;
    try {
        posed = guava::workspace(*context).triangles.reserve(static_cast<size_t>(scene->faces));
    } catch (const std::bad_alloc &) {
        return GUAVA_OUT_OF_MEMORY;
    }
    std::atomic<bool> fits{true};
    bool done = guava::parallel_for(
        *context, scene->faces, guava::kTriangleGrain,
        [&](int64_t begin, int64_t end, int) {
            if (!run.triangles(scene, posed, begin, end)) fits.store(false, std::memory_order_relaxed);
        }
    );
    if (done && fits.load())
        done = guava::parallel_for(
            *context, scene->count, guava::kGaussianGrain,
            [&](int64_t begin, int64_t end, int) {
                if (!run.gaussians(scene, posed, out, begin, end))
                    fits.store(false, std::memory_order_relaxed);
            }
        );
    if (!done) return GUAVA_CANCELLED;
    return fits.load() ? GUAVA_OK : GUAVA_INVALID_VALUE;
}

} // extern "C"
