#!/usr/bin/env bash
# Builds the kernels for this machine's GPU, checks them against the fp64 reference and times them.
#
#   tests/gpu/run.sh [--quick] [--sanitize] [--large] [--no-bench]
#
# Results: $OUT/kernel_check.json and $OUT/kernel_bench.json (OUT: target/gpu by default). NVCC and CUDA_LIB
# name the compiler and the folder of libcudart_static.a where they are not the usual ones; PREBUILT names
# a folder that holds kernel_check and libkernels.so already. PyTorch is needed for the timing part.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${OUT:-$root/target/gpu}
mkdir -p "$out"
random=150 sanitize=0 large= bench=1 rounds=15
for argument in "$@"; do
  case $argument in
    --quick) random=40 rounds=7 ;;
    --sanitize) sanitize=1 ;;
    --large) large=--large ;;
    --no-bench) bench=0 ;;
    *) echo "unknown argument $argument" >&2; exit 2 ;;
  esac
done

build=${PREBUILT:-}
if [[ -z $build ]]; then
  build=$out/build
  mkdir -p "$build"
  nvcc=${NVCC:-nvcc}
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
  flags=(-std=c++17 -O3 "-gencode=arch=compute_$arch,code=sm_$arch" -Xcompiler -fPIC "-I$root/plugins/kernels" -cudart static ${CUDA_LIB:+-L$CUDA_LIB})
  wide=("${flags[@]}")
  if [[ $arch == 90 ]]; then wide=("${flags[@]/compute_90,code=sm_90/compute_90a,code=sm_90a}" -DTRT_OPT_SM90A); fi
  export nvcc build
  compile() { # source object
    if [[ ! -e $2 || -n $(find "$root/plugins/kernels" "$root/tests/gpu" -newer "$2" -print -quit) ]]; then
      case $1 in
        */wide_gemm.cu | */wide_mlp*.cu | */attn_fused_wide*.cu | */block_chain*.cu | */block_flow*.cu | */tnt_words_wide*.cu) "$nvcc" "${wide[@]}" -c "$1" -o "$2" ;;
        *) "$nvcc" "${flags[@]}" -c "$1" -o "$2" ;;
      esac
    fi
  }
  jobs=()
  objects=()
  for source in "$root"/plugins/kernels/*.cu; do
    object=$build/$(basename "$source" .cu).o
    objects+=("$object")
    compile "$source" "$object" & jobs+=($!)
  done
  for name in kernel_check kernel_c_api; do compile "$root/tests/gpu/$name.cu" "$build/$name.o" & jobs+=($!); done
  for job in "${jobs[@]}"; do wait "$job"; done
  "$nvcc" "${flags[@]}" "$build/kernel_check.o" "${objects[@]}" -o "$build/kernel_check"
  "$nvcc" "${flags[@]}" -shared "$build/kernel_c_api.o" "${objects[@]}" -o "$build/libkernels.so"
fi

status=0
"$build/kernel_check" --json "$out/kernel_check.json" --random "$random" $large || status=1
sanitizer() { # tool, name of the result, arguments of kernel_check
  local tool=$1 name=$2
  shift 2
  local ended=0
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/kernel_check" --seed 7 "$@" >"$out/$name.txt" 2>&1 || ended=1
  grep -E 'SUMMARY|cases' "$out/$name.txt" | sed "s/^/$name: /" || true
  return $ended
}
if ((sanitize)); then
  sanitizer memcheck memcheck --no-edges --random 12 || status=1
  for kernel in layer_norm window patch_merge norm_pool classifier gelu attention pooled_attn_block tnt_inner_block tnt_bridge tnt_words patch_embed pixel_embed conv_block conv_layer patch_conv conv_stack; do
    sanitizer racecheck "racecheck_$kernel" --no-edges --random 4 --filter "$kernel" || status=1
  done
  # Depthwise convolutions have no random cases.
  for tool in memcheck racecheck; do sanitizer $tool "${tool}_depthwise_conv" --filter depthwise_conv || status=1; done
  # The MLP block as one kernel, that of attention of many windows and the chain of blocks order their rings of weights by mbarrier
  # instructions, which racecheck reports as races (plugins/NOTES.md): their results are for reading.
  for kernel in mlp_block attn_block block_chain; do sanitizer racecheck "racecheck_$kernel" --no-edges --random 4 --filter "$kernel" || true; done
fi
if ((bench)); then
  python3 "$root/tests/gpu/bench.py" "$build/libkernels.so" --json "$out/kernel_bench.json" --rounds "$rounds" >"$out/kernel_bench.txt" || status=1
  python3 "$root/tests/gpu/summary.py" "$out/kernel_bench.json" || status=1
fi
exit $status
