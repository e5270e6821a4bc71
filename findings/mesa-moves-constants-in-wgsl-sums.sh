#!/usr/bin/env bash
# Expected: in WGSL (a·b + c) + 1.0 rounds the inner sum, then the outer one, and nothing asked for
# fast mathematics: Mesa's software driver for Vulkan fuses no multiplication with an addition, and
# rounds a·b − c, a/b and sqrt(a) as the source says.
# Seen: it computes a·b + (c + 1.0): the constant moves to another operand of the sum, so a quarter of
# the results differ in the last bit. Without constants it simplifies as real numbers allow, too:
# (a + b) − b is a, and a·b + b·b is b·(a + b). A no-op of integers between the operations (xor with a
# 0 that the compiler does not know) keeps the order.
# We depend on it in: crates/bitnet-wgpu/src/wgsl/math.wgsl (`rounded`), whose e^x has the CPU's bits and
# reads the integer that x + 1.5·2^23 rounds to from the bits of the sum.
#
# Needs Mesa's driver: apt-get install libvulkan1 mesa-vulkan-drivers. Seen with Mesa 22.3.6.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet wgpu==0.32.0 numpy==2.4.6
XDG_RUNTIME_DIR="$dir" "$dir/venv/bin/python" - <<'PYTHON'
import numpy as np
import wgpu

software = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["adapter_type"] == "CPU"]
if not software:
    raise SystemExit("no software adapter: install mesa-vulkan-drivers")
adapter = software[0]
print("wgpu", wgpu.__version__, adapter.info["device"], adapter.info["description"])
device = adapter.request_device_sync()
SHADER = """
@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
fn kept(x: f32, zero: u32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ zero); }
@compute @workgroup_size(1)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = input[2u * id.x];
    let k = input[2u * id.x + 1u];
    output[id.x] = EXPRESSION;
}
"""
rng = np.random.default_rng(1)
c = rng.uniform(-0.35, 0.35, 32768).astype(np.float32)
k = rng.uniform(0.4, 0.6, 32768).astype(np.float32)
data = np.stack([c, k], axis=1)
one = np.float32(1)
ordered = (k * (c * c) + c) + one
moved = k * (c * c) + (c + one)


def run(expression):
    buffer_in = device.create_buffer_with_data(data=data, usage=wgpu.BufferUsage.STORAGE)
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
    buffer_out = device.create_buffer(size=4 * len(k), usage=usage)
    code = SHADER.replace("EXPRESSION", expression)
    pipeline = device.create_compute_pipeline(
        layout="auto", compute={"module": device.create_shader_module(code=code), "entry_point": "main"}
    )
    entries = [
        {"binding": i, "resource": {"buffer": b, "offset": 0, "size": b.size}}
        for i, b in enumerate([buffer_in, buffer_out])
    ]
    group = device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
    encoder = device.create_command_encoder()
    work = encoder.begin_compute_pass()
    work.set_pipeline(pipeline)
    work.set_bind_group(0, group)
    work.dispatch_workgroups(len(k))
    work.end()
    device.queue.submit([encoder.finish()])
    return np.frombuffer(device.queue.read_buffer(buffer_out), dtype=np.float32)


plain = run("(k * (c * c) + c) + 1.0")
guarded = run("kept(k * (c * c) + c, id.y) + 1.0")
count = lambda a, b: int((a.view(np.uint32) == b.view(np.uint32)).sum())
seen = {
    "(k c² + c) + 1 equals the order of the source": count(plain, ordered),
    "it equals k c² + (c + 1)": count(plain, moved),
    "guarded, it equals the order of the source": count(guarded, ordered),
}
cancelled, factored = run("(c + k) - k"), run("c * k + k * k")
seen |= {
    "(c + k) - k equals the order of the source": count(cancelled, (c + k) - k),
    "it equals c": count(cancelled, c),
    "c k + k k equals the order of the source": count(factored, c * k + k * k),
    "it equals k (c + k)": count(factored, k * (c + k)),
    "guarded, (c + k) - k equals the order of the source": count(run("kept(c + k, id.y) - k"), (c + k) - k),
}
for what, number in seen.items():
    print(f"{what}: {number} of {len(k)}")
all_of = [number == len(k) for number in seen.values()]
raise SystemExit(0 if all_of == [False, True, True, False, True, False, True, True] else 1)
PYTHON
