#!/usr/bin/env bash
# The main job, small but real: pre-train, transfer to classification and detection beside training from
# scratch, and report. Interrupt it at any time: started again it goes on where it was.
set -euo pipefail
runs=${1:-runs/demo}
data=data/demo

python tools/make_demo_data.py "$data"
spark pretrain configs/pretrain/resnet18_demo.yaml out="$runs/pretrain" data.root="$data/pool"
for init in scratch "$runs/pretrain"; do
    name=$(basename "$init")
    spark-eval finetune configs/finetune/resnet18_demo.yaml \
        out="$runs/finetune_$name" init="$init" data.root="$data/classification"
    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r18_demo.py \
        out="$runs/detect_$name" init="$init" data.root="$data/detection"
done
spark-eval report "$runs"
