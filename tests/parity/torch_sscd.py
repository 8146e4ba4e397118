"""SSCD in PyTorch at a tiny width, with torchvision's names of layers and with ClassyVision's.

torchvision is not installed where these tests run; what it computes is written out here.
"""

import torch
from torch import nn


def convolution(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, outputs), nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        hidden = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(hidden)))))
        if self.downsample is not None:
            x = self.downsample(x)
        return torch.relu(hidden + x)


class GeM(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).clamp(min=1e-6).pow(3.0).mean(dim=2).pow(1 / 3.0)


class Unit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x)


class ResNet(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 8, 7, 2), nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck(8, 8, 16, 1, groups), Bottleneck(16, 8, 16, 1, groups))
        self.layer2 = nn.Sequential(Bottleneck(16, 16, 32, 2, groups))
        self.avgpool = GeM()
        self.fc = nn.Linear(32, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))))


class Model(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.backbone, self.embeddings = ResNet(groups), Unit()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embeddings(self.backbone(x))


class ClassyLayer(nn.Module):
    def __init__(self, block: Bottleneck):
        super().__init__()
        self.convolutional_block = nn.Sequential(
            *(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2, nn.ReLU(), block.conv3)
        )
        self.bn, self.downsample = block.bn3, block.downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn(self.convolutional_block(x)) + residual)


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self._module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._module(x)


class ClassyTrunk(nn.Module):
    """With the names of layers that the published weights have, or with those of other versions."""

    def __init__(self, net: ResNet, wrapped: bool):
        super().__init__()
        self.initial_block = Wrapped(nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool))
        self.blocks = nn.Sequential()
        for number, stage in enumerate((net.layer1, net.layer2)):
            layers = nn.Sequential()
            for block, layer in enumerate(map(ClassyLayer, stage)):
                name = f"{block}" if wrapped else f"block{number}-{block}"
                layers.add_module(name, Wrapped(layer) if wrapped else layer)
            self.blocks.append(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.initial_block(x))


class ClassyModel(nn.Module):
    """The same weights as a `Model`, and the same vectors."""

    def __init__(self, model: Model, wrapped: bool = False):
        super().__init__()
        self.backbone = ClassyTrunk(model.backbone, wrapped)
        self.embeddings = nn.Sequential(GeM(), model.backbone.fc, Unit())
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embeddings(self.backbone(x))


def tiny(groups: int = 1) -> Model:
    """Random weights, and batch norms as training leaves them."""
    torch.manual_seed(groups)
    model = Model(groups)
    model(torch.randn(4, 3, 48, 48))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()
