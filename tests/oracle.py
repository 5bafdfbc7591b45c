"""Path patching as it is defined, with slow passes for each sender and receiver. It shares no code with minifunc/patching.py."""

import torch


class Oracle:
    """Pass 0, once: both runs as they are."""

    def __init__(
        self,
        model,
        base,
        contrast,
        base_answers,
        contrast_answers,
        source="base",
        sender_positions=None,
    ):
        self.model, self.contrast, self.answers = model, contrast, (base_answers, contrast_answers)
        base_logits, self.of_source = model.run_with_cache(base)
        contrast_logits, self.of_contrast = model.run_with_cache(contrast)
        self.F_base, self.F_contrast = self.F(base_logits), self.F(contrast_logits)
        if isinstance(source, torch.Tensor):
            _, self.of_source = model.run_with_cache(source)
        elif source == "mean":
            self.of_source = {
                name: x.mean(0, keepdim=True).expand_as(x) for name, x in self.of_source.items()
            }
        elif source == "zero":
            self.of_source = {name: torch.zeros_like(x) for name, x in self.of_source.items()}
        for position in set(range(base.shape[1])) - set(sender_positions or range(base.shape[1])):
            for name, x in self.of_source.items():
                if "scores" not in name and "pattern" not in name:
                    self.of_source[name] = x = x.clone()
                    x[:, position] = self.of_contrast[name][:, position]

    def F(self, logits):
        rows = torch.arange(len(logits))
        return (logits[rows, -1, self.answers[0]] - logits[rows, -1, self.answers[1]]).mean()

    def r(self, sender, receivers, freeze_mlps=False):
        """r of one sender ("embedding", "mlp2", "1.3"), or of a list of them that send together, on receivers overwritten together.

        A receiver is "logits", "2.1.q", "mlp1" or "resid2", with "@1,4" behind it if it is limited to positions.
        """
        model, of_source, of_contrast = self.model, self.of_source, self.of_contrast
        n_layers = model.cfg.n_layers

        # Pass 1: the contrast run, heads (and MLPs) frozen, the sender's output from the source.
        hooks = {}
        for layer in range(n_layers):
            hooks[f"blocks.{layer}.attn.hook_z"] = lambda x, name: of_contrast[name]
            if freeze_mlps and model.cfg.has_mlp:
                hooks[f"blocks.{layer}.hook_mlp_out"] = lambda x, name: of_contrast[name]
        for one in [sender] if isinstance(sender, str) else sender:
            name = (
                "hook_embed"
                if one == "embedding"
                else f"blocks.{one[3:]}.hook_mlp_out"
                if one.startswith("mlp")
                else f"blocks.{one.split('.')[0]}.attn.hook_z"
            )

            def send(
                x,
                name,
                head=None if one[0] in "em" else int(one.split(".")[1]),
                before=hooks.get(name),
            ):
                if head is None:
                    return of_source[name]
                x = before(x, name).clone()  # what heads of the same layer send with it
                x[:, :, head] = of_source[name][:, :, head]
                return x

            hooks[name] = send

        seen = {}
        places = {"mlp": "hook_mlp_in", "resid": "hook_resid_pre"}
        targets = []  # (hook name, head or None, positions)
        for receiver in receivers:
            receiver, _, where = receiver.partition("@")
            where = [int(position) for position in where.split(",")] if where else slice(None)
            if receiver in ("logits", f"resid{n_layers}"):
                targets.append((f"blocks.{n_layers - 1}.hook_resid_post", None, where))
            elif receiver[0].isdigit():
                layer, head, which = receiver.split(".")
                targets.append((f"blocks.{layer}.attn.hook_{which}", int(head), where))
            else:
                word = receiver.rstrip("0123456789")
                targets.append((f"blocks.{receiver[len(word) :]}.{places[word]}", None, where))
        for name, _, _ in targets:

            def record(x, name, frozen=hooks.get(name, lambda x, name: x)):
                seen[name] = frozen(x, name)
                return seen[name]

            if name not in seen:
                hooks[name] = record
                seen[name] = None
        model.run_with_hooks(self.contrast, hooks)

        # Pass 2: the contrast run again, everything live, the receivers overwritten by what pass 1 recorded.
        def overwrite(parts):
            def fn(x, name):
                x = x.clone()
                for head, where in parts:
                    if head is None:
                        x[:, where] = seen[name][:, where]
                    else:
                        x[:, where, head] = seen[name][:, where, head]
                return x

            return fn

        again = {
            name: overwrite([(head, where) for other, head, where in targets if other == name])
            for name, _, _ in targets
        }
        patched = model.run_with_hooks(self.contrast, again)
        return ((self.F(patched) - self.F_contrast) / (self.F_contrast - self.F_base)).item()
