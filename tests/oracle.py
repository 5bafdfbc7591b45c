"""Path patching as it is defined, with slow passes for each sender and receiver. It shares no code with minifunc/patching.py."""

import torch


class Oracle:
    """Pass 0, once: both runs as they are."""

    def __init__(self, model, base, contrast, base_answers, contrast_answers):
        self.model, self.contrast, self.answers = model, contrast, (base_answers, contrast_answers)
        base_logits, self.of_base = model.run_with_cache(base)
        contrast_logits, self.of_contrast = model.run_with_cache(contrast)
        self.F_base, self.F_contrast = self.F(base_logits), self.F(contrast_logits)

    def F(self, logits):
        rows = torch.arange(len(logits))
        return (logits[rows, -1, self.answers[0]] - logits[rows, -1, self.answers[1]]).mean()

    def r(self, sender, receivers, freeze_mlps=False):
        """r of one sender ("embedding", "mlp2", "1.3") on receivers overwritten together ("logits", "2.1.q", "mlp1", "resid2")."""
        model, of_base, of_contrast = self.model, self.of_base, self.of_contrast
        n_layers = model.cfg.n_layers

        # Pass 1: the contrast run, heads (and MLPs) frozen, the sender's output from the base run.
        hooks = {}
        for layer in range(n_layers):
            hooks[f"blocks.{layer}.attn.hook_z"] = lambda x, name: of_contrast[name]
            if freeze_mlps and model.cfg.has_mlp:
                hooks[f"blocks.{layer}.hook_mlp_out"] = lambda x, name: of_contrast[name]
        if sender == "embedding":
            hooks["hook_embed"] = lambda x, name: of_base[name]
        elif sender.startswith("mlp"):
            hooks[f"blocks.{sender[3:]}.hook_mlp_out"] = lambda x, name: of_base[name]
        else:
            sender_layer, sender_head = map(int, sender.split("."))

            def one_head(x, name):
                x = of_contrast[name].clone()
                x[:, :, sender_head] = of_base[name][:, :, sender_head]
                return x

            hooks[f"blocks.{sender_layer}.attn.hook_z"] = one_head

        seen = {}
        places = {"mlp": "hook_mlp_in", "resid": "hook_resid_pre"}
        targets = []  # (hook name, head or None)
        for receiver in receivers:
            if receiver in ("logits", f"resid{n_layers}"):
                targets.append((f"blocks.{n_layers - 1}.hook_resid_post", None))
            elif receiver[0].isdigit():
                layer, head, which = receiver.split(".")
                targets.append((f"blocks.{layer}.attn.hook_{which}", int(head)))
            else:
                word = receiver.rstrip("0123456789")
                targets.append((f"blocks.{receiver[len(word):]}.{places[word]}", None))
        for name, _ in targets:
            def record(x, name, frozen=hooks.get(name, lambda x, name: x)):
                seen[name] = frozen(x, name)
                return seen[name]

            if name not in seen:
                hooks[name] = record
                seen[name] = None
        model.run_with_hooks(self.contrast, hooks)

        # Pass 2: the contrast run again, everything live, the receivers overwritten by what pass 1 recorded.
        def overwrite(heads):
            def fn(x, name):
                if None in heads:
                    return seen[name]
                x = x.clone()
                for head in heads:
                    x[:, :, head] = seen[name][:, :, head]
                return x

            return fn

        again = {name: overwrite([head for other, head in targets if other == name]) for name, _ in targets}
        patched = model.run_with_hooks(self.contrast, again)
        return ((self.F(patched) - self.F_contrast) / (self.F_contrast - self.F_base)).item()
