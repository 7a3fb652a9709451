from .bundle import DataBundle as DataBundle, Split as Split
from .custom import Custom as Custom
from .digits import Digits as Digits
from .image_folder import ImageFolder as ImageFolder
from .loader import Loader as Loader, search_batches as search_batches
from .policy import RandAugment as RandAugment, TrivialAugment as TrivialAugment
from .spec import DataSpec as DataSpec, ImageSpec as ImageSpec
from .synthetic import Synthetic as Synthetic
from .torchvision_sets import SVHN as SVHN, Cifar10 as Cifar10, Cifar100 as Cifar100, FashionMnist as FashionMnist
from .transforms import Augment as Augment
