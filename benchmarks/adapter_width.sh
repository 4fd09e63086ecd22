#!/usr/bin/env bash
# Does a narrow ViT-Adapter cost accuracy? vit_small_16 frozen, adapter width 96 against 384 (the width of the ViT, as in
# the reference), head-neck CT, 20 labelled training cases, 42 held-out cases, three seeds. Run the stations in this order:
#   WORK=/scratch/width DATA=/path/to/nnUNet_raw bash benchmarks/adapter_width.sh plan pretrain runs compare
# SPACING (mm), CROP (voxels), STEPS and BATCH (pretraining on the unlabelled CT), EPOCHS (of 25 iterations) can be set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${WORK:?folder for everything that is written}" "${DATA:?nnUNet_raw folder with Dataset101 and Dataset201}"
SPACING=${SPACING:-4.5 4.5 3.5} CROP=${CROP:-48,48,32} STEPS=${STEPS:-150} BATCH=${BATCH:-8} EPOCHS=${EPOCHS:-16}
DEVICE=${DEVICE:-cpu} PLANS=nnsslPlans_vit_small_16 SET=Dataset101_HeadNeckCT
export nnUNet_raw=$DATA nnUNet_preprocessed=$WORK/nnUNet_preprocessed nnUNet_results=$WORK/nnUNet_results
export OMP_WAIT_POLICY=PASSIVE nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-0} nnUNet_def_n_proc=${nnUNet_def_n_proc:-1} nnUNet_compile=f
mkdir -p "$WORK"

timed() { # NAME COMMAND...: output to NAME.log; seconds and peak memory to costs.txt
    local name=$1; shift
    python "$here/measured.py" "$WORK/costs.txt" "$WORK/$name.log" "$@"
}
plan() { # one split: 42 held-out cases, the others for training; the crop is made smaller than planned, for a CPU
    timed plan nnssl_plan_and_preprocess -d 101 201 -e vit_small_16 -intensity window:-175,250 -overwrite_target_spacing $SPACING
    python - "$nnUNet_preprocessed/$SET" "$PLANS" "$CROP" <<'PY'
import json, random, sys
from pathlib import Path
folder, plans, crop = Path(sys.argv[1]), sys.argv[2], [int(side) for side in sys.argv[3].split(",")]
file = folder / f"{plans}.json"
content = json.loads(file.read_text())
content["configurations"]["3d_fullres"]["patch_size"] = crop
file.write_text(json.dumps(content, indent=2))
cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "gt_segmentations").glob("*.nii.gz"))
held_out = sorted(random.Random(0).sample(cases, 42))
split = {"train": [case for case in cases if case not in held_out], "val": held_out}
(folder / "splits_final.json").write_text(json.dumps([split], indent=2))
print(len(split["train"]), "training and", len(held_out), "held-out cases")
PY
}
pretrain() {
    timed pretrain nnssl_pretrain 201 -t threedino -e vit_small_16 -p "$PLANS" -run width -device "$DEVICE" \
        --set "steps=$STEPS" "batch_size=$BATCH" "global_crop=[$CROP]" "local_crop=[32,32,32]" base_lr=1e-2 prototypes=1024 save_every=50
}
runs() { # the validation at the end of nnssl_train predicts the held-out cases and scores them
    for seed in 0 1 2; do for width in 96 384; do
        [ -f "$nnUNet_results/$SET/FrozenEncoderTrainer__${PLANS}_w${width}s${seed}__3d_fullres/fold_0/validation/summary.json" ] && continue
        timed "train_w${width}_s$seed" nnssl_train 101 3d_fullres 0 -p "$PLANS" -run "w${width}s$seed" -num_labelled 20 \
            -seed "$seed" -device "$DEVICE" --disable_tta -pretrained_weights "$nnUNet_results/pretrained/width/encoder.safetensors" \
            --set "epochs=$EPOCHS" iterations_per_epoch=25 val_iterations=2 lr=3e-3 batch_size=2 warmup_fraction=0.05 \
            foreground_oversampling=1 "adapter_width=$width"
    done; done
}
compare() {
    python "$here/paired_dice.py" "$nnUNet_results/$SET" "FrozenEncoderTrainer__${PLANS}_w{width}s{seed}__3d_fullres" 96 384
}
for station in "$@"; do "$station"; done
