"""What this machine's processor has to have for some tests."""

from __future__ import annotations

import pytest
import torch

HAS_INT8 = torch._C._has_mkldnn and torch.cpu._is_vnni_supported()
NO_INT8 = "int8 needs oneDNN and a processor with VNNI"
needs_int8 = pytest.mark.skipif(not HAS_INT8, reason=NO_INT8)
