"""Steps of pretraining in one of several processes that share a device; started by torchrun from benchmarks.gpu_parts."""

import json
import sys

from components.common.runs.params import Runtime
from components.common.runs.shards import open_shards
from components.common.training import processes
from components.pretrain.params import Pretrain
from components.pretrain.training import Pretraining

if __name__ == "__main__":
    device, shards = sys.argv[1:]
    with processes.process_group("cpu"):  # gloo: nccl refuses two processes on one GPU
        given = {"arch": "resnet18", "batch_size": 16, "queue_size": 64, "shuffle_groups": 4, "probe_epochs": 0, "precision": "fp32"}
        task = Pretraining(Pretrain.model_validate({**given, "device": device}), Runtime(), open_shards([shards]))
        task.start()
        losses = [float(task.train_step(batch, 0, 0.0)["loss"]) for batch in task.batches(0, 0)]
        if processes.is_main():
            print(json.dumps(losses))
