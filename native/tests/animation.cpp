// Unit tests of skinning, posing and 8-bit frames, beside unit.cpp; references in double precision by loops,
// and memory of exactly the right size for the sanitizers.
#include <cmath>
#include <cstdint>
#include <vector>

#include "guava_native.h"

using Check = void (*)(bool good, const char *what);

namespace {

// The larger one; std::fmax would leave NaN out.
double larger(double most, double value) {
    return value <= most ? most : std::isnan(value) ? INFINITY : value;
}

struct Numbers {
    uint32_t state;
    float operator()(float low, float high) {
        state = state * 1664525u + 1013904223u;
        return low + (high - low) * static_cast<float>(state >> 8) / 16777216.0f;
    }
    std::vector<float> many(size_t count, float low, float high) {
        std::vector<float> values(count);
        for (float &value : values) value = (*this)(low, high);
        return values;
    }
};

void turn(Numbers &random, float *m) { // a rotation by rows
    double q[4], norm = 0;
    for (double &x : q) {
        x = random(-1, 1);
        norm += x * x;
    }
    for (double &x : q) x /= std::sqrt(norm);
    const double w = q[0], x = q[1], y = q[2], z = q[3];
    const double r[9] = {1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                         2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                         2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)};
    for (int i = 0; i < 9; ++i) m[i] = static_cast<float>(r[i]);
}

constexpr int kVertices = 37, kJoints = 3, kInfluences = 2, kFaces = 11, kGaussians = 61;

struct Figure {
    std::vector<int32_t> parents{-1, 0, 1}, triangles, anchor;
    std::vector<float> rest, joints, rotations, weights, skin_weights;
    std::vector<uint8_t> indices, skin_indices, binding;
    std::vector<float> out_joints, out_transforms, out_vertices, out_blended;
    std::vector<float> positions, quaternions, scales, barycentrics, offset, sigma, triangle_rotation;
    std::vector<float> means, turned, scaled;
    guava_body body{};
    guava_body_pose posed{};
    guava_pose_scene scene{};
    guava_posed gaussians{};

    Figure() {
        Numbers random{7};
        rest = random.many(3 * kVertices, -1, 1);
        joints = random.many(3 * kJoints, -1, 1);
        rotations.resize(9 * kJoints);
        for (int j = 0; j < kJoints; ++j) turn(random, &rotations[9 * j]);
        for (int v = 0; v < kVertices; ++v) {
            const float w = random(0, 1);
            weights.insert(weights.end(), {w, 1 - w});
            indices.insert(indices.end(), {uint8_t(v % 3), uint8_t((v + 1) % 3)});
        }
        out_joints.resize(3 * kJoints), out_transforms.resize(16 * kJoints);
        out_vertices.resize(3 * kVertices), out_blended.resize(16 * kVertices);
        body = {kVertices, kJoints, kInfluences, parents.data(), rest.data(), joints.data(), rotations.data(),
                indices.data(), weights.data(), {0.5f, -1, 9}};
        posed = {out_joints.data(), out_transforms.data(), out_vertices.data(), out_blended.data()};
        for (int f = 0; f < kFaces; ++f) triangles.insert(triangles.end(), {3 * f, 3 * f + 1, 3 * f + 2});
        for (int n = 0; n < kGaussians; ++n) {
            binding.push_back(uint8_t(n % 3));
            anchor.push_back(n % 3 == 0 ? n % kFaces : n % 3 == 1 ? n % kVertices : -1);
            const float w = random(0, 1);
            skin_weights.insert(skin_weights.end(), {w, 1 - w});
            skin_indices.insert(skin_indices.end(), {uint8_t(n % 3), uint8_t((n + 2) % 3)});
        }
        positions = random.many(3 * kGaussians, -1, 1), quaternions = random.many(4 * kGaussians, -1, 1);
        scales = random.many(3 * kGaussians, 0.1f, 1), barycentrics = random.many(3 * kGaussians, 0, 0.4f);
        offset = random.many(3 * kGaussians, -1, 1), sigma = random.many(kGaussians, 0.5f, 2);
        triangle_rotation = random.many(4 * kGaussians, -1, 1);
        means.resize(3 * kGaussians), turned.resize(4 * kGaussians), scaled.resize(3 * kGaussians);
        scene.count = kGaussians, scene.vertices = kVertices, scene.faces = kFaces, scene.joints = kJoints;
        scene.influences = kInfluences, scene.mean_edge = 1;
        scene.positions = positions.data(), scene.rotations = quaternions.data();
        scene.scales = scales.data();
        scene.barycentrics = barycentrics.data(), scene.local_offset = offset.data();
        scene.sigma = sigma.data(), scene.triangle_rotation = triangle_rotation.data();
        scene.skin_weights = skin_weights.data(), scene.skin_indices = skin_indices.data();
        scene.binding = binding.data(), scene.anchor = anchor.data(), scene.triangles = triangles.data();
        scene.mesh = out_vertices.data(), scene.transforms = out_blended.data();
        scene.joint_transforms = out_transforms.data();
        scene.origin[2] = 9;
        gaussians = {means.data(), turned.data(), scaled.data()};
    }
};

// The vertex by the chain of its joints: v -> T0 T1 ... (v - J) + J, turned about one joint after the other.
void along_chain(const Figure &f, int joint, const float *v, double *out) {
    double p[3] = {v[0], v[1], v[2]};
    for (int j = joint; j >= 0; --j) {
        double q[3];
        for (int r = 0; r < 3; ++r) {
            q[r] = f.joints[3 * j + r];
            for (int c = 0; c < 3; ++c) q[r] += f.rotations[9 * j + 3 * r + c] * (p[c] - f.joints[3 * j + c]);
        }
        for (int r = 0; r < 3; ++r) p[r] = q[r];
    }
    for (int r = 0; r < 3; ++r) out[r] = p[r] + f.body.translation[r];
}

double skinned_error(const Figure &f) {
    double worst = 0;
    for (int v = 0; v < kVertices; ++v) {
        double sum[3] = {}, p[3];
        for (int k = 0; k < kInfluences; ++k) {
            along_chain(f, f.indices[kInfluences * v + k], &f.rest[3 * v], p);
            for (int r = 0; r < 3; ++r) sum[r] += f.weights[kInfluences * v + k] * p[r];
        }
        for (int r = 0; r < 3; ++r) worst = larger(worst, std::fabs(sum[r] - f.out_vertices[3 * v + r]));
    }
    return worst;
}

double gaussian_error(const Figure &f) {
    double worst = 0;
    for (int n = 0; n < kGaussians; ++n) {
        double mean[3] = {}, norm = 0;
        if (f.binding[n] == 0) {
            const float *v[3];
            double a[3][3], length[3] = {}, edges[3][3], size = 0, area = 0, missing = 1;
            for (int i = 0; i < 3; ++i) v[i] = &f.out_vertices[3 * f.triangles[3 * f.anchor[n] + i]];
            for (int i = 0; i < 3; ++i) {
                for (int d = 0; d < 3; ++d) {
                    edges[i][d] = double(v[(i + 1) % 3][d]) - v[i][d];
                    length[i] += edges[i][d] * edges[i][d];
                }
                size += std::sqrt(length[i]) / 3;
            }
            for (int d = 0; d < 3; ++d) a[0][d] = edges[0][d] / std::sqrt(length[0]);
            for (int d = 0; d < 3; ++d) { // the side is minus the last edge
                const int i = (d + 1) % 3, j = (d + 2) % 3;
                a[1][d] = -(edges[0][i] * edges[2][j] - edges[0][j] * edges[2][i]);
                area += a[1][d] * a[1][d];
            }
            for (double &x : a[1]) x /= std::sqrt(area);
            for (int d = 0; d < 3; ++d) {
                const int i = (d + 1) % 3, j = (d + 2) % 3;
                a[2][d] = a[0][i] * a[1][j] - a[0][j] * a[1][i];
            }
            for (int k = 0; k < 3; ++k) {
                missing -= f.barycentrics[3 * n + k];
                for (int d = 0; d < 3; ++d)
                    mean[d] += f.barycentrics[3 * n + k] * v[k][d] + size * a[k][d] * f.offset[3 * n + k];
            }
            mean[2] += missing * 9;
            const double wanted = f.scales[3 * n] * size / f.sigma[n];
            worst = larger(worst, std::fabs(f.scaled[3 * n] - wanted) / wanted);
        } else if (f.binding[n] == 1) {
            for (int d = 0; d < 3; ++d) mean[d] = f.out_vertices[3 * f.anchor[n] + d];
        } else {
            double p[3];
            for (int k = 0; k < kInfluences; ++k) {
                along_chain(f, f.skin_indices[kInfluences * n + k], &f.positions[3 * n], p);
                for (int d = 0; d < 3; ++d) mean[d] += f.skin_weights[kInfluences * n + k] * p[d];
            }
        }
        for (int d = 0; d < 3; ++d) worst = larger(worst, std::fabs(mean[d] - f.means[3 * n + d]));
        for (int d = 0; d < 4; ++d) norm += double(f.turned[4 * n + d]) * f.turned[4 * n + d];
        worst = larger(worst, std::fabs(norm - 1));
    }
    return worst;
}

void test_posing(guava_context *context, Check check) {
    Figure f;
    check(guava_pose_body(context, &f.body, &f.posed) == GUAVA_OK, "a body is posed");
    check(skinned_error(f) < 1e-5, "vertices follow the chain of their joints");
    check(guava_pose_gaussians(context, &f.scene, &f.gaussians) == GUAVA_OK, "Gaussians are posed");
    check(gaussian_error(f) < 2e-5, "Gaussians follow triangles, vertices and joints");
}

void test_posing_refuses(guava_context *context, Check check) {
    const auto body = [&](auto spoil) {
        Figure f;
        spoil(f);
        return guava_pose_body(context, &f.body, &f.posed);
    };
    const auto gaussians = [&](auto spoil) {
        Figure f;
        guava_pose_body(context, &f.body, &f.posed);
        spoil(f);
        return guava_pose_gaussians(context, &f.scene, &f.gaussians);
    };
    check(body([](Figure &f) { f.parents[2] = 2; }) == GUAVA_INVALID_VALUE, "a joint that is its own parent");
    check(body([](Figure &f) { f.indices[9] = 3; }) == GUAVA_INVALID_VALUE, "a vertex with an unknown joint");
    check(body([](Figure &f) { f.body.joints = 257; }) == GUAVA_INVALID_CALL, "too many joints");
    check(body([](Figure &f) { f.body.weights = nullptr; }) == GUAVA_INVALID_CALL, "no weights");
    check(body([](Figure &f) { f.body.vertices = 0; }) == GUAVA_OK, "no vertices");
    for (int32_t wrong : {-1, 1000}) {
        check(gaussians([=](Figure &f) { f.anchor[0] = wrong; }) == GUAVA_INVALID_VALUE, "no such triangle");
        check(gaussians([=](Figure &f) { f.anchor[1] = wrong; }) == GUAVA_INVALID_VALUE, "no such vertex");
        check(gaussians([=](Figure &f) { f.triangles[5] = wrong; }) == GUAVA_INVALID_VALUE, "no such corner");
    }
    check(gaussians([](Figure &f) { f.skin_indices[5] = 3; }) == GUAVA_INVALID_VALUE, "no such joint");
    check(gaussians([](Figure &f) { f.binding[4] = 3; }) == GUAVA_INVALID_VALUE, "no such binding");
    check(
        gaussians([](Figure &f) { f.scene.joints = 0, f.scene.joint_transforms = nullptr; })
            == GUAVA_INVALID_VALUE,
        "no joints at all"
    );
    check(gaussians([](Figure &f) { f.scene.sigma = nullptr; }) == GUAVA_INVALID_CALL, "no sigma");
    check(gaussians([](Figure &f) { f.scene.count = 0; }) == GUAVA_OK, "no Gaussians");
}

void test_frames(guava_context *context, Check check) {
    const int width = 13, height = 9;
    for (int samples = 1; samples <= 3; ++samples)
        for (int glowing = 0; glowing < 2; ++glowing) {
            Numbers random{uint32_t(samples)};
            const size_t pixels = size_t(width * height) * samples * samples;
            const std::vector<float> features = random.many(5 * pixels, -0.1f, 1.1f);
            const std::vector<float> alpha = random.many(pixels, 0, 1);
            std::vector<uint8_t> rgb(size_t(height) * 40, 9);
            const guava_frame frame = {width, height, samples, 5, glowing, features.data(), alpha.data(),
                                       nullptr, {0.2f, 0.5f, 1}, 40, rgb.data()};
            check(guava_frame_rgb8(context, &frame) == GUAVA_OK, "a frame is drawn");
            double worst = 0;
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) {
                    double mean[4] = {};
                    for (int i = 0; i < samples * samples; ++i) {
                        const size_t from = size_t(y * samples + i / samples) * width * samples + x * samples
                            + i % samples;
                        for (int d = 0; d < 3; ++d) mean[d] += features[5 * from + d];
                        mean[3] += alpha[from];
                    }
                    for (double &m : mean) m /= samples * samples;
                    const double bright = std::fmax(std::fmax(mean[0], mean[1]), mean[2]);
                    const double a = glowing ? std::fmin(std::fmax(mean[3], bright), 1) : mean[3];
                    for (int d = 0; d < 3; ++d) {
                        const double front = std::fmin(std::fmax(mean[d], 0), a);
                        const double over = front + frame.background[d] * (1 - a);
                        const double level = std::fmin(std::fmax(over, 0), 1) * 255;
                        worst = larger(worst, std::fabs(level - rgb[size_t(y) * 40 + 3 * x + d]));
                    }
                }
            check(worst < 0.501, "frames are rounded from the right colours");
            bool untouched = true;
            for (int y = 0; y < height; ++y) untouched &= rgb[size_t(y) * 40 + 39] == 9;
            check(untouched, "nothing is written between rows");
            guava_frame bad = frame;
            bad.row_bytes = 3 * width - 1;
            check(guava_frame_rgb8(context, &bad) == GUAVA_INVALID_CALL, "rows that overlap");
            bad = frame, bad.channels = 2;
            check(guava_frame_rgb8(context, &bad) == GUAVA_INVALID_CALL, "two channels are no picture");
            bad = frame, bad.alpha = nullptr;
            check(guava_frame_rgb8(context, &bad) == GUAVA_INVALID_CALL, "no alpha");
        }
}

} // namespace

void animation_tests(Check check) {
    for (int32_t isa : {GUAVA_ISA_BASELINE, GUAVA_ISA_AVX2, GUAVA_ISA_AVX512})
        for (int threads = 1; threads <= 2 && guava_isa_available(isa); ++threads) {
            guava_context *context = guava_context_create(threads);
            check(context && guava_context_set_isa(context, isa) == GUAVA_OK, "a context");
            test_posing(context, check);
            test_posing_refuses(context, check);
            test_frames(context, check);
            guava_context_destroy(context);
        }
}
