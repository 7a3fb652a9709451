from .arch_params import ArchParams as ArchParams
from .choice import Choice as Choice, choices as choices, gates as gates
from .freezing import freeze as freeze
from .genotype import Genotype as Genotype
