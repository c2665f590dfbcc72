"""The choice of precision and layout follows what the device can do."""

import pytest
import torch

from trilemma.nets import memory_format, precision, recommended_precision


@pytest.mark.parametrize(("amx", "bf16"), [(True, True), (False, True), (False, False)])
def test_the_processor_decides(monkeypatch, amx, bf16):
    monkeypatch.setattr(precision, "_AMX", amx)
    monkeypatch.setattr(precision, "_CPU_BF16", bf16)
    assert recommended_precision("cpu") == ("bf16" if bf16 else "fp32")
    assert memory_format("cpu") == (torch.channels_last if amx else torch.contiguous_format)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_gpu_generation_decides(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert recommended_precision("cuda:0") == expected
    assert memory_format("cuda:0") == torch.channels_last


def test_an_old_torch_without_the_question_means_no():
    assert not precision._cpu_has("a_feature_nobody_has")
