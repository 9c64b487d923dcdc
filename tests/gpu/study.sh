#!/usr/bin/env bash
# Measures what reports/ is made of, one step after another: each leaves a report.json of its own, so that what is there
# when time runs out is kept, and `trt-opt report --merge OUT/*/report.json` puts them together.
#
#   study.sh STEP ...      steps: fixtures core1 core32 ablation1 tuned1 tuned32 fp32 audit cublas
#
# Environment: TRT_OPT (the program, compiled for the TensorRT at hand), TENSORRT (its folder), PLUGINS (the library), WORK
# (engines, models and timings of layers: what is there is not made again), OUT (reports), JOBS (engines built at a time;
# default 4), BUILD_TIME (seconds in which builds may begin, a step), ENGINES_ONLY (not empty: build and stop, so that a later
# call measures on a quiet machine), REPORT (more options of `trt-opt report`), MODELS and VARIANTS (those of core1 and core32).
# Models are exported by models/export.py, with random weights.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${TRT_OPT:?}" "${TENSORRT:?}" "${PLUGINS:?}" "${WORK:?}" "${OUT:?}"
export LD_LIBRARY_PATH=$TENSORRT${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
mkdir -p "$WORK" "$OUT"
onnxruntime=$(python3 -c 'import glob, onnxruntime, os; print(glob.glob(os.path.dirname(onnxruntime.__file__) + "/capi/libonnxruntime.so*")[0])')

# models BATCH EXPORTER NAME...: exports what is missing, side by side; sets `files` to NAME=FILE ...
models() {
  local batch=$1 exporter=$2
  shift 2
  files=()
  for name in "$@"; do
    local file=$WORK/${name}_${exporter}_b${batch}_fp32.onnx
    files+=("$name=$file")
    [[ -e $file ]] || OMP_NUM_THREADS=4 python3 "$root/models/export.py" "$name" --exporter "$exporter" --batch "$batch" --precision fp32 -o "$WORK" >"$WORK/export_${name}_$batch.log" 2>&1 &
  done
  wait
}

# fixtures NAME...: sets `files` to those in the repository
fixtures() {
  files=()
  for name in "$@"; do files+=("$name=$root/tests/fixtures/$name.onnx"); done
}

# report STEP OPTION...: the models in `files`
report() {
  local step=$1 begin=$SECONDS last=(--profile)
  shift
  if [[ -n ${ENGINES_ONLY:-} ]]; then last=(--engines-only); fi
  "$TRT_OPT" report --models "${files[@]}" --run "$step" --jobs "${JOBS:-4}" ${BUILD_TIME:+--build-time "$BUILD_TIME"} --plugins "$PLUGINS" --tensorrt "$TENSORRT" --onnxruntime "$onnxruntime" \
    --work "$WORK/engines" -o "$OUT/$step" ${REPORT:-} "${last[@]}" "$@" >"$OUT/$step.log" 2>&1
  echo "$step: exit $? after $((SECONDS - begin)) s"
}

for step in "$@"; do
  case $step in
    fixtures) # that fused models run in TensorRT and compute the same, not how fast; TensorRT finds float32 faster for models this small
      fixtures swin_ts17 swin_dy18 swin_ts17_dyn swin_pad_ts17 swin_original_ts17 swin_torchvision_dy18 tnt_ts17 tnt_dy18 ptnt_ts17 uniformer_ts17 vit_ts17
      report fixtures --precision fp32 --variants all,blocks --opt-level 0 --rounds 2 --per-round 3
      fixtures swin_ts17_fp16 tnt_ts17_fp16
      report fixtures16 --variants all,blocks --opt-level 0 --rounds 2 --per-round 3 ;;
    core1) models 1 ts17 ${MODELS:-resnet50 swin_t tnt_s ptnt_s uniformer_s resnet101} && report core1 --variants "${VARIANTS:-native,canonical,all,blocks}" ;;
    core32) models 32 ts17 ${MODELS:-resnet50 swin_t tnt_s ptnt_s uniformer_s} && report core32 --variants "${VARIANTS:-native,canonical,all,blocks}" ;;
    ablation1) models 1 ts17 resnet50 swin_t tnt_s && report ablation1 ;;
    tuned1) models 1 ts17 resnet50 swin_t tnt_s ptnt_s uniformer_s && report tuned1 --variants native,tuned ;;
    tuned32) models 32 ts17 resnet50 swin_t tnt_s ptnt_s uniformer_s && report tuned32 --variants native,tuned ;;
    fp32) models 1 ts17 resnet50 swin_t tnt_s && report fp32 --variants native --precision fp16,fp32 ;;
    audit) # baselines that might be faster than the usual native engines
      models 1 ts13 swin_t && other=${files[0]#*=} && models 1 ts17 resnet50 swin_t tnt_s && files+=("swin_t:native-opset13=$other")
      report audit --variants native,native-o5 ;;
    cublas) # with real libraries of cuBLAS in LD_LIBRARY_PATH
      models 1 ts17 resnet50 swin_t tnt_s && report cublas --variants native,native-cublas ;;
    *) echo "unknown step $step" >&2; exit 2 ;;
  esac
done
