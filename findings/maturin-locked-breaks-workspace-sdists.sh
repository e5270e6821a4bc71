#!/usr/bin/env bash
# Expected: `locked = true` below [tool.maturin] builds a source distribution with the versions of Cargo.lock, as it builds
# the tree that the distribution was made from.
# Seen: in a Cargo workspace with two versions of a crate, of which the package uses one, the source distribution cannot be
# built at all. maturin leaves out the members that the package does not need, but copies Cargo.lock whole. There the used
# crate is "itoa 1.0.15", because there is another itoa; Cargo wants to write "itoa" for it now, which --locked forbids.
# maturin makes such a distribution without a warning, and it builds without `locked`.
# We depend on it in: pyproject.toml, which does not say `locked`.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check maturin==1.16.0
"$dir/venv/bin/maturin" --version
cargo --version

cd "$dir"
mkdir -p tree/hello/src tree/other/src
cat >tree/Cargo.toml <<'EOF'
[workspace]
members = ["hello", "other"]
resolver = "2"
EOF
for name in hello other; do
    printf '[package]\nname = "%s"\nversion = "1.0.0"\nedition = "2021"\n' "$name" >"tree/$name/Cargo.toml"
    echo 'fn main() {}' >"tree/$name/src/main.rs"
done
cat >tree/pyproject.toml <<'EOF'
[build-system]
requires = ["maturin==1.16.0"]
build-backend = "maturin"
[project]
name = "hello"
version = "1.0.0"
[tool.maturin]
manifest-path = "hello/Cargo.toml"
bindings = "bin"
locked = true
EOF
# Two versions of one crate: Cargo.lock names the one that `hello` uses as "itoa 1.0.15", not "itoa".
printf '[dependencies]\nitoa = "=1.0.15"\n' >>tree/hello/Cargo.toml
printf '[dependencies]\nitoa = "=0.4.8"\n' >>tree/other/Cargo.toml
(cd tree && cargo generate-lockfile -q)

# builds NAME FOLDER: whether a wheel can be built in a folder.
builds() {
    if (cd "$2" && "$dir/venv/bin/maturin" build --target-dir "$dir/target" -o "$dir/wheels") >"$dir/log" 2>&1; then
        echo "$1 builds"
    else
        echo "$1 does not build: $(grep -m1 -o 'cannot update the lock file' "$dir/log" || tail -n 1 "$dir/log")"
    fi
}
(cd tree && "$dir/venv/bin/maturin" sdist -o "$dir/dist") >/dev/null 2>&1
mkdir unpacked
tar xzf dist/hello-1.0.0.tar.gz -C unpacked
{
    builds "the tree" "$dir/tree"
    builds "its source distribution" "$dir/unpacked/hello-1.0.0"
    sed -i.bak '/^locked/d' unpacked/hello-1.0.0/pyproject.toml
    builds "the same without locked" "$dir/unpacked/hello-1.0.0"
} | tee seen
diff seen - <<'EOF'
the tree builds
its source distribution does not build: cannot update the lock file
the same without locked builds
EOF
