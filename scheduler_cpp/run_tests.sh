#!/bin/sh
# Builds and runs the C++ tests of the scheduler: unit tests, random worlds, must-fail programs and
# the explorer. Needs a C++20 compiler and CMake; nothing else.
#
#   scheduler_cpp/run_tests.sh              optimised, assertions on
#   scheduler_cpp/run_tests.sh --sanitize   with AddressSanitizer and UBSan (the explorer walks less)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build/cpp-tests
sanitize=OFF
if [ "${1:-}" = "--sanitize" ]; then
  build=$here/../build/cpp-sanitize
  sanitize=ON
elif [ $# -gt 0 ]; then
  echo "usage: $0 [--sanitize]" >&2
  exit 2
fi
mkdir -p "$build"
cmake -S "$here" -B "$build" -DBATON_BUILD_TESTS=ON -DBATON_SANITIZE=$sanitize \
  -DCMAKE_BUILD_TYPE=Release >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" --parallel 2 >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
rm -f "$build.log"
ctest --test-dir "$build" --output-on-failure --parallel 2
