"""What torchdistill's examples/torchvision/image_classification.py does with a config, call by call, on the CPU.

The script itself is not installed with the package and starts NCCL on GPUs; here are the same calls of torchdistill's
API in the same order and with the same objects, for each of two processes under gloo.
"""
import argparse
import json
import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torchdistill.common import file_util, main_util, module_util, yaml_util
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model

CPU = torch.device('cpu')


def load_model(config):
    model = get_image_classification_model(config, True)
    model = get_model(config['key'], config.get('repo_or_dir'), **config['kwargs']) if model is None else model
    main_util.load_ckpt(config.get('src_ckpt'), model=model, strict=True)
    return model.to(CPU)


@torch.inference_mode()
def evaluate(model, loader):
    """It wraps once more whatever is not wrapped."""
    if not module_util.check_if_wrapped(model):
        model = DistributedDataParallel(model, device_ids=None)
    model.eval()
    right = torch.zeros(())
    for images, targets in loader:
        right += (model(images).argmax(1) == targets).sum()
    distributed.all_reduce(right)
    return 100 * right.item() / len(loader.dataset)


def train(teacher, student, config, models):
    setting = (config['datasets'], config['train'], CPU, None, True, 1)
    box = get_training_box(student, *setting) if teacher is None else get_distillation_box(teacher, student, *setting)
    destination, source = models['dst_ckpt'], models.get('src_ckpt')
    if file_util.check_if_exists(source):
        main_util.load_ckpt(source, optimizer=box.optimizer, lr_scheduler=box.lr_scheduler)
    validated, best, saved = box.model if teacher is None else box.student_model, 0., []
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, targets, extra in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(images, targets, extra))
        accuracy = evaluate(validated, box.val_data_loader)
        if accuracy > best:
            best = accuracy
            saved.append(epoch)
            main_util.save_ckpt(validated, box.optimizer, box.lr_scheduler, best, argparse.Namespace(), destination)
        box.post_epoch_process()
    distributed.barrier()
    box.clean_modules()
    return saved


def run(work, config, test_only, report):
    """What one process does in the folder `work`; it writes what it found to `report` with its rank."""
    os.chdir(work)
    main_util.set_seed(0)
    config = yaml_util.load_yaml_file(config)
    main_util.import_dependencies(config.get('dependencies'))
    models = config['models']
    teacher = load_model(models['teacher_model']) if 'teacher_model' in models else None
    student_config = models['student_model'] if 'student_model' in models else models['model']
    student = load_model(student_config)
    saved = None if test_only else train(teacher, student, config, student_config)
    main_util.load_ckpt(student_config['dst_ckpt'], model=student, strict=True)
    test = config['test']['test_data_loader']
    loader = build_data_loader(config['datasets'][test['dataset_id']], test, True)
    result = {'saved': saved, 'student': evaluate(student, loader),
              'teacher': None if teacher is None else evaluate(teacher, loader)}
    sums = [sum(p.double().sum().item() for p in m.parameters()) for m in (teacher, student) if m is not None]
    report.with_suffix(f'.{distributed.get_rank()}').write_text(json.dumps({**result, 'sums': sums}))
