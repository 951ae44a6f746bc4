@echo off
rem Dual task: the class and the emotion distribution together, on true labels, after the text phase.
rem Staged prompts: --multi_layer_prompt. Label-free: TRAIN.SUPERVISION pseudo.
rem It sets --dual_task, --scheduler none (a constant learning rate), TRAIN.SUPERVISION labels (the true
rem labels train) and --resume auto.
rem     scripts\LaFTer_DualTask.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\LaFTer_DualTask.bat emotion6 --root DATA --lambda_weight 0.5
rem     scripts\LaFTer_DualTask.bat emoset DATASET.SIGMA_CONF 0.8
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
call "%PY%" "%PROJECT%\LaFTer.py" --resume auto --dual_task --scheduler none TRAIN.SUPERVISION labels ^
    --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
