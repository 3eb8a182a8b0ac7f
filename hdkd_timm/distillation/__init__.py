"""Distilling a frozen teacher into a student: methods, losses, the training task, and what a task sees of a network.

Works on any timm networks and imports nothing of this package but `layers`: `training` picks the networks and the
settings.

    networks   what a method knows of student and teacher before the first batch
    outputs    what it sees of them in each batch
    methods    the methods, one file each; losses has the pure functions of HDKD's
    student    student, methods and loss as the one module that is trained
    teacher    the frozen teacher, what it is given to see, or its stored logits
    task       the training task, `DistillationTask`, for any methods
    hdkd_task  the same for HDKD's, `HDKDTask`
    init       a student that starts from layers of its teacher
    checks     do a student and a teacher match?
"""
