"""PyTorch in ddl: the backend "ddl" of torch.distributed. Imported only when asked for; needs the extra [torch]."""

from ddl.torch.backend import register

register()
