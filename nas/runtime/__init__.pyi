from .runtime import Runtime as Runtime
