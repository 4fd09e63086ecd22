#!/usr/bin/env bash
# The four rows of docs/results.md: hippocampus, ten labelled cases. Run the stations in this order:
#   WORK=/scratch/first DATA=/path/to/nnUNet_raw DEVICE=cuda bash benchmarks/first_result.sh plan pretrain frozen random scratch stock evaluate
# ENCODER, SPACING (mm, X Y Z), STEPS and BATCH (pretraining), EPOCHS (fine-tuning, of 25 iterations), MINUTES (stock
# nnU-Net) can be set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${WORK:?folder for everything that is written}" "${DATA:?nnUNet_raw folder with Dataset004_Hippocampus}"
ENCODER=${ENCODER:-vit_tiny_8} SPACING=${SPACING-1 1 1} DEVICE=${DEVICE:-cpu} STEPS=${STEPS:-240} BATCH=${BATCH:-8}
EPOCHS=${EPOCHS:-10} MINUTES=${MINUTES:-7.75} LR=${LR:-1e-3} BASE_LR=${BASE_LR:-1e-2}
PLANS=nnsslPlans_$ENCODER
export nnUNet_raw=$DATA nnUNet_preprocessed=$WORK/nnUNet_preprocessed nnUNet_results=$WORK/nnUNet_results
export OMP_WAIT_POLICY=PASSIVE nnUNet_n_proc_DA=${nnUNet_n_proc_DA:-0} nnUNet_def_n_proc=${nnUNet_def_n_proc:-2} nnUNet_compile=f
mkdir -p "$WORK"

timed() { # NAME COMMAND...: output to NAME.log; seconds and peak memory to costs.txt
    local name=$1; shift
    python "$here/measured.py" "$WORK/costs.txt" "$WORK/$name.log" "$@"
}
train() { # NAME MODE...
    local name=$1; shift
    timed "train_$name" nnssl_train 4 3d_fullres 0 -p "$PLANS" -run "$name" -num_labelled 10 -seed 0 -device "$DEVICE" --no_validation "$@" \
        --set "epochs=$EPOCHS" iterations_per_epoch=25 val_iterations=2 "lr=$LR" batch_size=2
}
predict() { # NAME
    timed "predict_$1" nnssl_predict -i "$WORK/validation/images" -o "$WORK/predictions_$1" -d 4 -c 3d_fullres \
        -p "${PLANS}_$1" -f 0 -device "$DEVICE" --disable_tta
}
plan() {
    timed plan nnssl_plan_and_preprocess -d 4 -e "$ENCODER" ${SPACING:+-overwrite_target_spacing $SPACING}
}
pretrain() {
    timed pretrain nnssl_pretrain 4 -t threedino -e "$ENCODER" -p "$PLANS" -f 0 -run first -device "$DEVICE" \
        --set "steps=$STEPS" "batch_size=$BATCH" "base_lr=$BASE_LR" prototypes=1024 save_every=40
}
frozen() { train frozen -pretrained_weights "$nnUNet_results/pretrained/first/encoder.safetensors"; }
random() { train random --random_frozen; }
scratch() { train scratch --from_scratch; }
stock() {
    export nnUNet_preprocessed=$WORK/stock_preprocessed nnUNet_extTrainer=$here/stock_trainer NNSSL_STOCK_MINUTES=$MINUTES
    nnUNet_n_proc_DA=1 timed stock_plan nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres --verify_dataset_integrity
    python - "$WORK" <<'PY'
import json, sys
from pathlib import Path
from nnssl.trainers.splits import labelled_subset
work = Path(sys.argv[1])
split = json.loads((work / "nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json").read_text())[0]
split["train"] = labelled_subset(split["train"], 10, 0)  # the cases that `-num_labelled 10 -seed 0` takes
out = work / "stock_preprocessed/Dataset004_Hippocampus/splits_final.json"
out.write_text(json.dumps([split]))
print(len(split["train"]), "training cases,", len(split["val"]), "validation cases")
PY
    timed train_stock nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerMinutes -device "$DEVICE"
    timed predict_stock nnUNetv2_predict -i "$WORK/validation/images" -o "$WORK/predictions_stock" -d 4 -c 3d_fullres \
        -tr nnUNetTrainerMinutes -f 0 -device "$DEVICE" --disable_tta
}
validation() { # links to the images and labels of fold 0's validation cases
    python - "$WORK" "$DATA" <<'PY'
import json, sys
from pathlib import Path
work, raw = Path(sys.argv[1]), Path(sys.argv[2]).resolve() / "Dataset004_Hippocampus"
for case in json.loads((work / "nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json").read_text())[0]["val"]:
    for source, folder in ((raw / f"imagesTr/{case}_0000.nii.gz", "images"), (raw / f"labelsTr/{case}.nii.gz", "labels")):
        link = work / "validation" / folder / source.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(source)
PY
}
evaluate() { # each run, and each control compared with the frozen pretrained encoder case by case
    local common=(-ref "$WORK/validation/labels" -images "$WORK/validation/images")
    timed evaluate_frozen nnssl_evaluate "${common[@]}" -pred "$WORK/predictions_frozen" -o "$WORK/evaluation_frozen"
    for name in random scratch stock; do
        timed "evaluate_$name" nnssl_evaluate "${common[@]}" -pred "$WORK/predictions_frozen" \
            -pred2 "$WORK/predictions_$name" -o "$WORK/evaluation_$name"
        cat "$WORK/evaluation_$name/evaluation.md"
    done
}

for station in "$@"; do
    case $station in
        frozen | random | scratch) validation; "$station"; predict "$station" ;;
        stock) validation; stock ;;
        *) "$station" ;;
    esac
done
