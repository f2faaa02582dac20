"""Run a torchdistill config for image classification: train or distil, keep the best checkpoint, test.

Uses torchdistill's public API only, and does what its own example script does for these configs, with one difference:
a teacher without weights is an error here, where the script logs a line and distils a random model.

    python make_digits.py
    python run.py --config digits/sftn/test_efficientnet_from_test_resnet.yaml --device cpu --seed 0
"""
import argparse
import logging
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader
from torchdistill.common import main_util, module_util, yaml_util
from torchdistill.common.constant import LOGGING_FORMAT, def_logger
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader
from torchdistill.misc.log import setup_log_file
from torchdistill.models.official import get_image_classification_model
from torchdistill.models.registry import get_model

logger = def_logger.getChild(__name__)
DEPENDENCY = "dependencies:\n  - name: 'sf_teacher.adapters.torchdistill'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, type=Path, help='YAML file')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--seed', type=int)
    parser.add_argument('--run_log', help='log file')
    parser.add_argument('--world_size', type=int, default=1, help='for torchrun')
    parser.add_argument('-test_only', action='store_true', help='test the best checkpoint, train nothing')
    parser.add_argument('-log_config', action='store_true', help='log the config')
    args = parser.parse_args()
    logging.basicConfig(format=LOGGING_FORMAT, level=logging.INFO)
    if args.run_log:
        setup_log_file(args.run_log)
    in_parallel, _, device_ids = main_util.init_distributed_mode(args.world_size)
    main_util.set_seed(args.seed)
    if not args.config.is_file():
        raise SystemExit(f'there is no config {args.config}')
    config = yaml_util.load_yaml_file(str(args.config))
    main_util.import_dependencies(config.get('dependencies'))
    if args.log_config:
        logger.info(config)
    run(config, args, torch.device(args.device), device_ids, in_parallel)


def run(config: dict, args: argparse.Namespace, device: torch.device, device_ids: list | None, parallel: bool) -> None:
    models, train = config['models'], config['train']
    teacher = load(args.config, 'teacher_model', models, device, parallel, trains_teacher(train) and not args.test_only)
    name = 'student_model' if teacher is not None else 'model'
    student = load(args.config, name, models, device, parallel, True)
    best = models[name]['dst_ckpt']
    if not args.test_only:
        setting = (config['datasets'], train, device, device_ids, parallel, 1)
        try:
            box = get_distillation_box(teacher, student, *setting) if teacher is not None else \
                get_training_box(student, *setting)
        except ValueError as error:
            raise SystemExit(f'{args.config}: train: {error}{remedy(error)}') from error
        fit(box, box.student_model if teacher is not None else box.model, best, args, train['log_freq'])
    if not Path(best).is_file():
        raise SystemExit(f'{args.config}: models.{name}.dst_ckpt {best} does not exist, train first')
    main_util.load_ckpt(best, model=student)
    test = config['test']['test_data_loader']
    loader = build_data_loader(config['datasets'][test['dataset_id']], test, parallel)
    if teacher is not None:
        logger.info(f'teacher: top-1 {accuracy(teacher, loader, device):.2f} %')
    logger.info(f'{name}: top-1 {accuracy(student, loader, device):.2f} %')


def load(
        file: Path,
        name: str,
        models: dict,
        device: torch.device,
        parallel: bool,
        may_be_random: bool,
) -> nn.Module | None:
    """Build a model of the config; torchvision's names go first, as everywhere in torchdistill."""
    if name not in models:
        return None
    config, where = models[name], f'{file}: models.{name}'
    checkpoint = config.get('src_ckpt')
    if config.get('sync_bn') and str(config['key']).startswith('sf_teacher.'):
        raise SystemExit(f'{where}.sync_bn: torchdistill reads it for torchvision\'s models only. Give it in `kwargs`')
    try:
        model = get_image_classification_model(config, parallel)
        ours = model is None
        if ours:
            model = get_model(config['key'], config.get('repo_or_dir'), **config['kwargs'])
    except ValueError as error:
        raise SystemExit(f'{where}.key {config["key"]!r}: {error}{remedy(error)}') from error
    if checkpoint is not None and not str(checkpoint).startswith('http') and not Path(checkpoint).is_file():
        if not may_be_random:
            raise SystemExit(f'{where}.src_ckpt: {checkpoint} does not exist, the teacher would have random weights. '
                             f'Correct the path, or export the teacher first')
        checkpoint = None
    weights = {config['kwargs'].get(k) for k in ('weights', 'pretrained')} - {None, False}
    if checkpoint is None and not may_be_random and not weights and not ours:
        raise SystemExit(f'{where}: the teacher has no src_ckpt and no weights, it would be a random model')
    try:
        main_util.load_ckpt(checkpoint, model=model)
    except (RuntimeError, KeyError) as error:
        raise SystemExit(f'{where}.src_ckpt: {checkpoint} is of another model than key {config["key"]!r} with '
                         f'{config["kwargs"]}: {error}. Correct the key, its num_classes or the path') from error
    return model.to(device)


def remedy(error: ValueError) -> str:
    unknown = any(words in str(error) for words in ('is not expected', 'registered'))
    return f'. If the key is an adapter\'s, add to the config\n{DEPENDENCY}' if unknown else ''


def trains_teacher(train: dict) -> bool:
    stages = [value for key, value in train.items() if key.startswith('stage')] or [train]
    teacher = stages[0].get('teacher', {})
    wrapper = (teacher.get('auxiliary_model_wrapper') or {}).get('key')     # this one trains its simplifier only
    return bool(teacher.get('requires_grad', True)) and wrapper != 'Teacher4StudentFriendlyKD'


def fit(box: object, model: nn.Module, best: str, args: argparse.Namespace, log_freq: int) -> None:
    top = 0.
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for step, (images, targets, extra) in enumerate(box.train_data_loader):
            loss = box.forward_process(images.to(box.device), targets.to(box.device), extra)
            if not loss.isfinite():
                raise SystemExit(f'{args.config}: the loss is {loss.item()} in epoch {epoch}, step {step}')
            box.post_forward_process(loss=loss)
            if step % log_freq == 0:
                logger.info(f'epoch {epoch} step {step}: loss {loss.item():.4f}')
        trained = getattr(getattr(box, 'student_forward_proc', None), '__name__', '') != 'skip_forward'
        top1 = accuracy(model, box.val_data_loader, box.device) if trained else \
            accuracy(box.teacher_model, all_images(box.val_data_loader), box.device)
        logger.info(f'epoch {epoch}: validation top-1 {top1:.2f} %' + ('' if trained else ' (teacher)'))
        if trained and top1 > top:
            top = top1
            given = {key: str(value) for key, value in vars(args).items()}
            main_util.save_ckpt(model, box.optimizer, box.lr_scheduler, top, given, best)
        box.post_epoch_process()
    box.clean_modules()


def all_images(loader: DataLoader) -> DataLoader:
    """Without `sf_teacher.skip_validation`."""
    dataset = getattr(loader.dataset, 'org_dataset', loader.dataset)
    return DataLoader(dataset, loader.batch_size, num_workers=loader.num_workers)


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    model = model.module if module_util.check_if_wrapped(model) else model
    model.eval()
    counts = torch.zeros(2, device=device)
    for images, targets in loader:
        counts[0] += (model(images.to(device)).argmax(1) == targets.to(device)).sum()
        counts[1] += len(targets)
    if main_util.is_dist_avail_and_initialized():
        distributed.all_reduce(counts)
    return 100 * (counts[0] / counts[1]).item()


if __name__ == '__main__':
    sys.exit(main())
